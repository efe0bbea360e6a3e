"""The proof of an export: that what is served is what was trained. docs/export.md explains its five points."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunebook.common import files, provenance
from tunebook.common.errors import CheckFailed, first_lines
from tunebook.common.export import bounds, checks, output_proof, prompt_proof, weight_proof
from tunebook.common.export.reference import Reference

FILE = "export.json"


@dataclass
class Proof:
    """Of one file or folder that is served.

    Attributes:
        what: its name in the table. bits: of a weight.
    """

    what: str
    bits: int
    checks: list[checks.Check]
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "bits": self.bits,
            "holds": not checks.failures(self.checks),
            "checks": checks.as_dicts(self.checks),
            **self.figures,
        }


def prove(reference: Reference, served: Any, weights: Any, what: str, coarser: int = 0) -> Proof:
    """
    Args:
        served: see served.py. weights: as weight_proof.check; None: nothing is to be read in them.
        coarser: bits whose bounds hold for probabilities and answers, where they are not those of the weights.
    """
    found, ends = reference.conversations, reference.ends
    limits = bounds.of(served.bits)
    checked = prompt_proof.check(served, found, reference.tokenizer, reference.template, ends)
    figures: dict[str, Any] = {}
    if weights is not None:
        more, figures["weights"] = weight_proof.check(reference.weights, weights, limits, what)
        checked += more
    if any(check.failure and check.name == "weights are complete" for check in checked):
        return Proof(what, served.bits, checked, figures)  # a server fills them in with random numbers
    outputs = output_proof.of(served, found)
    limits = bounds.of(coarser or served.bits)
    more, figures["outputs"] = output_proof.check(
        reference.outputs, reference.base_logits, outputs, ends, limits, served.text
    )
    return Proof(what, served.bits, [*checked, *more], figures)


def write(proofs: list[Proof], about: dict[str, Any], file: Path) -> None:
    """Write the proofs as JSON."""
    result = {
        **about,
        "holds": all(proof.as_dict()["holds"] for proof in proofs),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "exports": [proof.as_dict() for proof in proofs],
    }
    files.write_json(file, result)


def conclude(proofs: list[Proof], file: Path | None) -> None:
    """Print the tables, and where they were written.

    Raises:
        CheckFailed: a check does not hold.
    """
    for proof in proofs:
        print(f"\n{proof.what} ({proof.bits} bits a weight), beside the trained model:\n{checks.table(proof.checks)}")
    if file is not None:
        print(f"\nproof: {file}")
    failed = [f"{proof.what}: {failure}" for proof in proofs for failure in checks.failures(proof.checks)]
    if failed:
        raise CheckFailed(f"what is served is not what was trained:{first_lines(failed)}")
