"""The trained model that an export is held against: its prompts, weights and answers."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunebook.common.export import conversations, output_proof, serving_files
from tunebook.common.export import source as sources
from tunebook.common.export.base_weights import BaseWeights
from tunebook.common.export.source import Source
from tunebook.common.export.trained_weights import AdaptedWeights, FineTunedWeights
from tunebook.common.tokens import tokenization

INTO = ("dequantized", "original")  # the base that an adapter of a run in 4 bits is merged into


@dataclass
class Reference:
    """
    Args:
        template: a name, where none was saved.
        into: of a run in 4 bits: the base that the export has, `dequantized` or `original`.
    """

    source: Source
    template_name: str = ""
    into: str = "dequantized"

    @cached_property
    def tokenizer(self) -> Any:
        return tokenization.load(str(self.source.tokenizer_folder))[0]

    @cached_property
    def template(self) -> Any:
        return sources.template(self.source, self.tokenizer, self.template_name)

    @cached_property
    def ends(self) -> list[int]:
        """Ids at which an answer ends; first training's."""
        return serving_files.ends(self.source, self.tokenizer, self.template)

    @cached_property
    def conversations(self) -> list[conversations.HeldOut]:
        config = self.model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return conversations.held_out(self.source, self.tokenizer, self.template, positions)

    @cached_property
    def base(self) -> BaseWeights | None:
        """What training has computed with; None where a model trained whole and its base is not at hand."""
        if self.source.adapter or self.source.base:
            try:
                return BaseWeights(self.source.base_folder(), self.source.four_bit)
            except sources.UserError:
                if self.source.adapter:
                    raise
        return None

    @property
    def model(self) -> Any:
        """The model that is served, without its weights."""
        return self.base.model if self.base else self.weights.skeleton

    @cached_property
    def weights(self) -> AdaptedWeights | FineTunedWeights:
        """What the export's weights are to be."""
        if not self.source.adapter:
            return FineTunedWeights(self.base, self.source.trained)
        base = self.base
        if self.source.four_bit and self.into == "original":
            base = BaseWeights(self.source.base_folder())
        assert base is not None
        return AdaptedWeights(base, self.source.trained)

    @cached_property
    def _outputs(self) -> tuple[output_proof.Outputs, list[Any] | None]:
        return output_proof.of_trained(self.source, self.base, self.conversations, self.ends)

    @property
    def outputs(self) -> output_proof.Outputs:
        return self._outputs[0]

    @property
    def base_logits(self) -> list[Any] | None:
        return self._outputs[1]
