"""A point in time as our records store it."""

from typing import Annotated

from pydantic import Field

from brt_dist.reading import LATEST

Moment = Annotated[float, Field(ge=0, le=LATEST)]
"""unix seconds, up to the last date that Python's calendar can show"""
