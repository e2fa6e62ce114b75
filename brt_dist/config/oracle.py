"""The oracle heads of a model that learns a bounded context-free language (arXiv 2112.09174)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from brt_dist.config.halves import Matrix
from brt_dist.config.section import Section
from brt_dist.languages import FIRST, LANGUAGES

if TYPE_CHECKING:
    from brt_dist.config.schema import ModelConfig
    from brt_dist.languages import Language

    Name = str
else:
    Name = Literal[tuple(LANGUAGES)]


class OracleConfig(Section):
    """Heads that predict the state and the stack of a language's machine, for `model.objective: oracle`.

    The language must be the dataset's, as given to `brt data corpus cfg`.
    """

    language: Name = Field("dyck", description="language of the dataset's documents")
    types: PositiveInt = Field(2, le=4, description="kinds of brackets, or letters [k]")
    depth: PositiveInt = Field(4, description="deepest stack [m]; dyck and palindrome only")
    slots: PositiveInt = Field(4, description="slots of the stack that are predicted, from the bottom")
    decomposition: Literal["forced", "latent"] = Field(
        "forced",
        description="forced: the state and each slot have their own slice of the hidden state; latent: a network for "
        "each of them reads the whole hidden state",
    )
    hidden: PositiveInt = Field(64, description="hidden units of each network")
    weight: NonNegativeFloat = Field(
        1.0,
        description="weight of the losses of state and stack; 0: the heads are probes, which learn without affecting "
        "the rest of the model",
    )

    def machine(self) -> "Language":
        """The machine of the language."""
        return LANGUAGES[self.language](self.types, self.depth)

    @property
    def classes(self) -> tuple[int, int]:
        """Classes of the state, and of a slot of the stack; class 0 is no state, or an empty slot."""
        machine = self.machine()
        return machine.states + 1, FIRST + len(machine.letters)

    def networks(self, width: int) -> tuple[int, int]:
        """How many networks read the stack, and how many channels each network reads."""
        return (1, width // (1 + self.slots)) if self.decomposition == "forced" else (self.slots, width)

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        """Weight and bias of both layers of each network."""
        (count, size), (states, symbols) = self.networks(model.width), self.classes
        for outputs in (states, *[symbols] * count):
            yield Matrix(self.hidden, size)
            yield Matrix(self.hidden)
            yield Matrix(outputs, self.hidden)
            yield Matrix(outputs)

    def flops(self, model: "ModelConfig") -> float:
        """FLOPs of the heads for each token."""
        (_, size), (states, symbols) = self.networks(model.width), self.classes
        return 2.0 * self.hidden * (size + states + self.slots * (size + symbols))
