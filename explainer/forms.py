"""Which exact form serves a model and a convention, and what it costs where none is cheap."""

from dataclasses import dataclass
from typing import Literal

from explainer.attention import LinearAttention
from explainer.models import VitClassifier
from explainer.structure import is_plain_latent_pool, pooling, position_term

FormName = Literal["closed form", "collapse", "definition"]


@dataclass(frozen=True)
class Form:
    """The form that is used at `block` (counted from the end).

    `reason`: why nothing cheaper is exact, where the form is the definition.
    """

    name: FormName
    block: int
    reason: str = ""

    def passes(self, model: VitClassifier) -> float:
        """About how many plain forward passes an image costs by the definition."""
        return 1 + model.patches * -self.block / len(model.vit.blocks)


def form_at(model: VitClassifier, block: int, residual: Literal["masked", "kept"]) -> Form:
    """The cheapest exact form at `block`, counted from the end."""
    vit, pools = model.vit, pooling(model.vit)
    term, last = position_term(vit), block == -1
    attention = LinearAttention.of(vit.blocks[-1])
    if last and pools == "token" and attention is not None:
        return Form("closed form", block)
    zeros_stay = last and attention is not None and attention.unbiased and not attention.normed
    if term == "relative" or (term == "rotary" and not zeros_stay):
        return Form("definition", block, _of_positions(term, pools, last=last))
    if pools not in ("token", "avg", "map") or (pools == "map" and not is_plain_latent_pool(vit)):
        return Form(
            "definition", block, f"its head's pooling ({pools}) is known by definition only"
        )
    if residual == "kept" and not (last and pools == "token"):
        reason = "with the kept residual every masked token stays different from the others"
        return Form("definition", block, reason)
    return Form("collapse", block)


def default_form(model: VitClassifier, residual: Literal["masked", "kept"]) -> Form:
    """The form at block -2, or at the last block where only that has a cheap one."""
    forms = [
        form_at(model, block, residual) for block in (-2, -1) if -block <= len(model.vit.blocks)
    ]
    cheap = [form for form in forms if form.name != "definition"]
    return (cheap or forms)[0]


def _of_positions(term: str, pools: str, *, last: bool) -> str:
    reason = f"its attention takes {term} positions, so masked tokens differ by place"
    if last and pools == "token":
        return f"{reason}, and it is not linear in what it reads"
    if last:
        return f"{reason}, and its head reads all tokens ({pools} pooling)"
    return reason
