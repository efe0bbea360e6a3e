"""BERTScore (Zhang and others, ICLR 2020, arXiv 1904.09675) of answers and references, by an encoder on this machine.

Every word piece is matched with the likest one of the other text, by the cosine of their contextual embeddings; F1 of
the mean over the answer's pieces and the mean over the reference's. No weights by rarity, no rescaling: numbers of one
encoder and layer can be compared with each other, and with bert-score's own of `idf=False`.
"""

from functools import cache
from typing import Any

from tunebook.common.errors import UserError


class BertScore:
    """An encoder and the layer whose embeddings are compared.

    Args:
        folder: of the encoder and its tokenizer, or a Hub name.
        layer: from 1; 0: the last. The authors found 17 best for roberta-large, 9 for bert-base-uncased.

    Raises:
        UserError: there is no such encoder, or it has not so many layers.
    """

    def __init__(self, folder: str, layer: int = 0):
        import torch
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"--bert_model {folder} cannot be loaded: {error}") from error
        layers = model.config.num_hidden_layers
        if not 0 <= layer <= layers:
            raise UserError(f"--bert_layer {layer}: {folder} has {layers} layers")
        self.layer = layer or layers
        self.model: Any = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        # Byte-level tokenizers know a word at the beginning by the space before it.
        kind = type(self.tokenizer).__name__.lower()
        self.lead = " " if "roberta" in kind or "gpt2" in kind else ""
        positions = getattr(model.config, "max_position_embeddings", 512)
        self.limit = min(self.tokenizer.model_max_length, positions)

    def score(self, reference: str, answer: str) -> float:
        """F1 of one pair; 0 where either says nothing. Texts are cut where the encoder's positions end."""
        if not reference.strip() or not answer.strip():
            return 0.0
        (wanted_TD, counts_T), (said_SD, counts_S) = self._embed(reference), self._embed(answer)
        likeness_ST = said_SD @ wanted_TD.T
        precision = float((likeness_ST.amax(1) * counts_S).sum() / counts_S.sum())
        recall = float((likeness_ST.amax(0) * counts_T).sum() / counts_T.sum())
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def _embed(self, text: str) -> tuple[Any, Any]:
        """Embeddings of length 1 (tokens, width), and 1.0 for each that counts: not for those that open and close."""
        import torch

        ids = self.tokenizer.encode(self.lead + text.strip(), truncation=True, max_length=self.limit)
        with torch.no_grad():
            row = torch.tensor([ids], device=self.model.device)
            found_TD = self.model(row, output_hidden_states=True).hidden_states[self.layer][0]
        frame = {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id}
        counts_T = torch.tensor([float(token not in frame) for token in ids], device=self.model.device)
        return found_TD / found_TD.norm(dim=-1, keepdim=True), counts_T


@cache
def of(folder: str, layer: int) -> BertScore:
    """The encoder, loaded once."""
    return BertScore(folder, layer)
