"""A point in time as our records hold it."""

from typing import Annotated

from pydantic import Field

from brt_dist.reading import LATEST

Moment = Annotated[float, Field(ge=0, le=LATEST)]
"""unix seconds; the calendar of Python and of people ends where this does"""
