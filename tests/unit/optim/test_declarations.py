"""What each kind of optimizer declares, and that nothing needs torch to read it."""

import subprocess
import sys

import pytest

from brt_dist.config.schema import Config
from brt_dist.kinds import OPTIMIZERS
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import logical_parameters
from brt_dist.optim.base import LocalMatrix
from brt_dist.parallel.layout import single_process

WIDE = LocalMatrix((128, 512), 0, 2, 256)  # one of two tensor parallel ranks has half of the rows
STACKED = LocalMatrix((384, 256), None, 1, 384, stacked=(3, 16))
VECTOR = LocalMatrix((512,), None, 1, 512)
NARROW = LocalMatrix((64, 512), 1, 4, 64)  # a quarter of the columns


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_table_and_the_section_agree_on_the_name(name: str) -> None:
    made = OPTIMIZERS[name]()
    assert made.name == name
    given = {"data": {"dataset": "d"}, "run": {"directory": "r", "steps": 1}, "optimizer": {"name": name}}
    assert Config.model_validate(given).optimizer == made


def test_adamw_is_what_is_not_said_otherwise() -> None:
    given = Config.model_validate({"data": {"dataset": "d"}, "run": {"directory": "r", "steps": 1}})
    assert given.optimizer == OPTIMIZERS["adamw"]()


FIRST = ("first_moment", None, ())
FACTORED = [
    (WIDE, [FIRST, ("row_moment", (256,), (128,)), ("column_moment", (1, 512), (1, 512))]),
    (STACKED, [FIRST, ("row_moment", (384,), (384,)), ("column_moment", (3, 256), (3, 256))]),
    (VECTOR, [FIRST, ("second_moment", None, ())]),
    (NARROW, [FIRST, ("second_moment", None, ())]),
]


@pytest.mark.parametrize(("part", "fields"), FACTORED, ids=["wide", "stacked", "vector", "narrow"])
def test_adafactor_has_moments_of_rows_and_columns_of_large_matrices(part: LocalMatrix, fields: list[object]) -> None:
    found = OPTIMIZERS["adafactor"]().state_fields(part)
    assert [(field.name, field.shape, field.local) for field in found] == fields


def test_adamw_has_two_moments() -> None:
    for part in (WIDE, STACKED, VECTOR, NARROW):
        assert [field.name for field in OPTIMIZERS["adamw"]().state_fields(part)] == ["exp_avg", "exp_avg_sq"]


def test_bytes() -> None:
    """ZeRO cuts what is laid out as the parameter, and leaves row and column moments whole."""
    parts = [WIDE, VECTOR]
    elements = 128 * 512 + 512
    assert OPTIMIZERS["adamw"]().state_bytes(parts, 1) == 8 * elements
    assert OPTIMIZERS["adamw"]().state_bytes(parts, 4) == 2 * elements
    assert OPTIMIZERS["adafactor"]().state_bytes(parts, 1) == 4 * (elements + 128 + 512 + 512)
    assert OPTIMIZERS["adafactor"]().state_bytes(parts, 2) == 4 * ((elements + 512) // 2 + 128 + 512)


def test_parts_are_those_that_a_rank_holds() -> None:
    given = Config.model_validate(
        {
            "model": {
                "layers": 2,
                "width": 32,
                "heads": 2,
                "head_dim": 16,
                "vocab_size": 101,
                "recurrent_layers": (1,),
            },
            "data": {"dataset": "d"},
            "run": {"directory": "r", "steps": 1},
        }
    )
    with single_process():
        for parameter in logical_parameters(BlockRecurrentModel(given.model, 0)):
            assert LocalMatrix.of(parameter, 1).shape == tuple(parameter.local.shape), parameter.name
            halved = LocalMatrix.of(parameter, 2)
            assert halved.logical_columns == LocalMatrix.of(parameter, 1).columns


def test_the_launcher_reads_them_without_torch() -> None:
    code = """
import sys
from brt_dist.kinds import OPTIMIZERS
from brt_dist.optim.base import LocalMatrix
from brt_dist.config.loading import load
from brt_dist.config.rules import check
for name, kind in OPTIMIZERS.items():
    kind().state_bytes([LocalMatrix((8, 8), None, 1, 8)], 1)
    check(load("data: {dataset: d}\\nrun: {directory: r, steps: 2000}\\n", [f"optimizer.name={name}"]).config)
assert "torch" not in sys.modules, "torch was imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
