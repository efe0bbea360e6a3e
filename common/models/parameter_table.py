"""What trains and what does not, in how many bits: the parameters of a model by the kind of module that holds them."""

import re
from dataclasses import dataclass, field
from typing import Any

from tunebook.common.errors import CheckFailed
from tunebook.common.format import byte_size, number, table
from tunebook.common.models import model_bytes, module_kinds, moe

LINES = 12  # of a terminal
FOUR_BIT = ("attention", "MLP", "shared experts", "experts")  # kinds of weights that 4 bits are for
NAMED = 3  # parameters that a message names


@dataclass
class Group:
    """The parameters of one kind of module. A 4-bit weight counts as the values that it stands for.

    Attributes:
        bits: of each weight as it is held; several where a group has several.
        bytes: what is held, with the scales of quantized weights.
        tensors: those that train; of them `reached` have had a gradient, in `moved` one that is not all zero.
        unrouted: experts that train and that no token of the rehearsal was sent to; they are in `reached`, or not, as
            the model keeps its experts.
    """

    kind: str
    parameters: int = 0
    trained: int = 0
    bits: list[int] = field(default_factory=list)
    bytes: int = 0
    tensors: int = 0
    reached: int = 0
    moved: int = 0
    unrouted: int = 0

    def add(self, parameter: Any) -> None:
        values, bits = values_of(parameter), bits_of(parameter)
        self.parameters += values
        self.bits = sorted({*self.bits, bits})
        self.bytes += model_bytes.of([parameter])
        if parameter.requires_grad:
            self.trained += values
            self.tensors += 1

    @property
    def gradient(self) -> str:
        """What was seen of its gradients, in words."""
        if not self.tensors:
            return "frozen"
        seen = "all tensors" if self.reached == self.tensors else f"{self.reached} of {self.tensors} tensors"
        zero = "" if self.moved else ", all zero"
        return seen + zero + (f", {self.unrouted} experts without a token" if self.unrouted else "")

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "gradient": self.gradient}


class Table:
    """The groups of a model, and what of them gets gradients.

    Args:
        model: as it will train, its adapters on it.

    Raises:
        CheckFailed: no parameter is to train, or something that a PEFT config names is not in the model.
    """

    def __init__(self, model: Any):
        self.model, self.groups, self._kinds = model, groups(model), module_kinds.of(model)
        self._without = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._still = set(self._without)
        self._experts: dict[tuple[str, str], Any] = {}  # kind, module -> bool (experts,): which have had a gradient
        if not self._without:
            raise CheckFailed(f"nothing would train: all {len(self._kinds)} tensors of the model are frozen")
        if lacking := unmatched(model):
            raise CheckFailed(f"{'; '.join(lacking)}. It would not train: correct the name, or leave it out")

    def see(self) -> None:
        """Note the gradients that are there, after a backward pass."""
        for name, parameter in self.model.named_parameters():
            if parameter.grad is None or not parameter.requires_grad:
                continue
            self._without.discard(name)
            if name in self._still and bool(parameter.grad.any()):
                self._still.discard(name)
            used = moe.experts_used(self.model, name, parameter)
            if used is not None:
                place = self._kinds[name], name.partition(".experts.")[0]
                self._experts[place] = used | self._experts[place] if place in self._experts else used

    def check(self) -> None:
        """Count what was seen.

        Raises:
            CheckFailed: a tensor that is to train has had no gradient; experts that no token was sent to are not meant,
                where others of their kind have had one.
        """
        trained = {name: self._kinds[name] for name, p in self.model.named_parameters() if p.requires_grad}
        for kind, group in self.groups.items():
            mine = [name for name in trained if trained[name] == kind]
            group.reached = sum(name not in self._without for name in mine)
            group.moved = sum(name not in self._still for name in mine)
            group.unrouted = sum(int((~used).sum()) for (own, _), used in self._experts.items() if own == kind)
        if len(self._without) == len(trained):
            raise CheckFailed(nothing_reached(self.model))
        unrouted = {name for name in self._without if moe.routed(trained[name]) and self.groups[trained[name]].reached}
        for kind, _ in {(trained[name], re.sub(r"(\.experts\.\d+)\..*", r"\1", name)) for name in unrouted}:
            self.groups[kind].unrouted += 1
        if lost := [name for name in trained if name in self._without - unrouted]:
            where = ", ".join(dict.fromkeys(trained[name] for name in lost))
            raise CheckFailed(
                f"{len(lost)} of the {len(trained)} tensors that are to train get no gradient ({where}): {some(lost)}. "
                "They would be saved as they are and count as trained: leave them out of the adapters' targets "
                "(exclude_modules), or freeze them"
            )


def groups(model: Any) -> dict[str, Group]:
    """The parameters by their kind, in the model's order."""
    found: dict[str, Group] = {}
    kinds = module_kinds.of(model)
    for name, parameter in model.named_parameters():
        found.setdefault(kinds[name], Group(kinds[name])).add(parameter)
    return found


def nothing_reached(model: Any) -> str:
    """Why a model whose loss depends on nothing that trains cannot be trained."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return (
        f"nothing would train: the loss depends on none of the {len(names)} tensors that are to train ({some(names)}). "
        "The model computes without them: load its base by transformers, or put other adapters on it"
    )


def values_of(parameter: Any) -> int:
    """Values that a parameter stands for; a 4-bit weight is packed into fewer."""
    state = vars(parameter).get("quant_state")
    return parameter.numel() if state is None else state.shape.numel()


def bits_of(parameter: Any) -> int:
    """Bits a value as it is held, without scales."""
    return 4 if type(parameter).__name__ == "Params4bit" else 8 * parameter.element_size()


def some(names: Any) -> str:
    """The first of many names."""
    names = [name.removeprefix("base_model.model.") for name in names]
    return ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")


def unmatched(model: Any) -> list[str]:
    """What PEFT's configs name as targets and the model does not have, in words. PEFT itself refuses only where not
    one name of a list matches."""
    found, modules = [], [name for name, _ in model.named_modules()]
    weights = [name.replace(".base_layer", "") for name, _ in model.named_parameters()]
    for config in getattr(model, "peft_config", {}).values():
        for what, places in (("target_modules", modules), ("target_parameters", weights), ("modules_to_save", modules)):
            asked = vars(config).get(what)
            for word in sorted(asked) if isinstance(asked, (list, set, tuple)) else []:
                if not any(place == word or place.endswith(f".{word}") for place in places):
                    found.append(f"{what}: {word} matches nothing in this {type(model.get_base_model()).__name__}")
    return found


def check_four_bit(model: Any, name: str) -> None:
    """Whether the weights of attention, MLP and experts are in 4 bits where that was asked for. Embeddings, head, norms
    and routers are not meant to be; nor, where a quantized checkpoint leaves some out, all layers.

    Raises:
        CheckFailed: all weights of one of these kinds are in more: bitsandbytes quantizes linear layers, and
            transformers 5 keeps the experts of a layer in one tensor that is none.
    """
    found = groups(model)
    wide = [group for kind, group in found.items() if kind in FOUR_BIT and 4 not in group.bits]
    if wide:
        every, held = (sum(vars(group)[word] for group in found.values()) for word in ("parameters", "bytes"))
        lines = [
            f"{group.kind}, {group.parameters:,} of {every:,} parameters, in {max(group.bits)} bits "
            f"({byte_size(group.bytes)} of {byte_size(held)})"
            for group in wide
        ]
        raise CheckFailed(
            f"--model {name}: 4 bits were asked for and not had: {'; '.join(lines)}. bitsandbytes quantizes linear "
            "layers whose width is a multiple of 64, and no fused experts. Train adapters on all its bits "
            "(lora_alpaca), or name a checkpoint that is in 4 bits already"
        )


def text(groups: list[Group]) -> str:
    """Groups as lines for a terminal, LINES at most: the smallest that train nothing are put together."""
    for frozen in (True, False):
        few = sorted((group for group in groups if (group.trained == 0) == frozen), key=lambda group: group.parameters)
        over = len(groups) - (LINES - 2)
        if over > 0 and len(few) > 1:
            few = few[: over + 1]
            groups = [group for group in groups if group not in few] + [together(few, "others")]
    rows = [
        (group.kind, number(group.parameters), number(group.trained), "/".join(map(str, group.bits)),
         byte_size(group.bytes), group.gradient)
        for group in [*groups, together(groups, "all")]
    ]  # fmt: skip
    return table(("parameters", "all", "trained", "bits", "held", "gradient"), rows, left=(0, 5))


def together(groups: list[Group], kind: str) -> Group:
    """Several groups as one."""
    total = Group(kind, bits=sorted({bits for group in groups for bits in group.bits}))
    for name in ("parameters", "trained", "bytes", "tensors", "reached", "moved", "unrouted"):
        setattr(total, name, sum(getattr(group, name) for group in groups))
    return total
