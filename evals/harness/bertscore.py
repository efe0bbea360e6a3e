"""BERTScore (Zhang and others, ICLR 2020, arXiv 1904.09675) of answers and references, by an encoder on this machine.

Each token is matched with the most similar one of the other text, by the cosine of their contextual embeddings; F1 of
the mean over the answer's tokens and the mean over the reference's. No idf weights, no rescaling: as bert-score's own
with `idf=False`, and comparable for one encoder and layer.
"""

from functools import cache
from typing import Any

from tunebook.common.errors import UserError, cannot_load


class BertScore:
    """An encoder and the layer whose embeddings are compared.

    Args:
        folder: of the encoder and its tokenizer, or a Hub name.
        layer: from 1; 0: the last. The authors found 17 best for roberta-large, 9 for bert-base-uncased.

    Raises:
        UserError: there is no such encoder, or no such layer.
    """

    def __init__(self, folder: str, layer: int = 0):
        import torch
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        except Exception as error:
            raise cannot_load(f"--bert_model {folder}", error) from error
        layers = model.config.num_hidden_layers
        if not 0 <= layer <= layers:
            raise UserError(f"--bert_layer {layer}: {folder} has {layers} layers")
        self.layer = layer or layers
        self.model: Any = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        # Byte-level tokenizers mark the first word of a text by the space before it.
        kind = type(self.tokenizer).__name__.lower()
        self.lead = " " if "roberta" in kind or "gpt2" in kind else ""
        positions = getattr(model.config, "max_position_embeddings", 512)
        self.limit = min(self.tokenizer.model_max_length, positions)

    def score(self, reference: str, answer: str) -> float:
        """F1 of one pair; 0 where either is empty. Texts are truncated at the encoder's positions."""
        if not reference.strip() or not answer.strip():
            return 0.0
        (reference_TD, mask_T), (answer_SD, mask_S) = self._embed(reference), self._embed(answer)
        cosine_ST = answer_SD @ reference_TD.T
        precision = float((cosine_ST.amax(1) * mask_S).sum() / mask_S.sum())
        recall = float((cosine_ST.amax(0) * mask_T).sum() / mask_T.sum())
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def _embed(self, text: str) -> tuple[Any, Any]:
        """Unit embeddings (tokens, width), and a mask of the tokens other than CLS and SEP (tokens,)."""
        import torch

        ids = self.tokenizer.encode(self.lead + text.strip(), truncation=True, max_length=self.limit)
        with torch.no_grad():
            row = torch.tensor([ids], device=self.model.device)
            hidden_TD = self.model(row, output_hidden_states=True).hidden_states[self.layer][0]
        special = {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id}
        mask_T = torch.tensor([float(token not in special) for token in ids], device=self.model.device)
        return hidden_TD / hidden_TD.norm(dim=-1, keepdim=True), mask_T


@cache
def of(folder: str, layer: int) -> BertScore:
    """The encoder, loaded once."""
    return BertScore(folder, layer)
