"""Versions, device, what will be used, and what is wrong, each with its remedy. Changes nothing, asks no network.

    tunebook doctor

Ends with 1 where something is wrong.
"""

import dataclasses
from dataclasses import dataclass

from tunebook.common import files
from tunebook.common.commands.doctor.finding import EXTRA, GOOD, NOTE, WRONG, Finding
from tunebook.common.errors import CheckFailed


@dataclass
class Args:
    json: str = ""  # also write what was found to this file


def main(args: Args) -> None:
    from tunebook.common.commands.doctor import extras, machine, packages, surroundings

    found = [*packages.examine(), *machine.examine(), *surroundings.examine(), *extras.examine()]
    show(found)
    if args.json:
        files.write_json(args.json, [dataclasses.asdict(finding) for finding in found])
    wrong = [finding.topic for finding in found if finding.state == WRONG]
    if wrong:
        raise CheckFailed(f"{len(wrong)} wrong: {', '.join(wrong)}. The lines above say what to do")
    notes = sum(finding.state == NOTE for finding in found)
    print("\nNothing is wrong" + (f"; lines marked note are worth reading ({notes})." if notes else "."))


def show(found: list[Finding]) -> None:
    """Print the findings, one a line, the remedy under those that need one."""
    from rich.text import Text

    from tunebook.common.process.terminal import printer

    console, width = printer(), max(len(finding.topic) for finding in found)
    styles = {GOOD: "green", NOTE: "yellow", WRONG: "bold red", EXTRA: "dim"}
    for finding in found:
        line = Text.assemble(
            (f"{finding.state:5}", styles[finding.state]), f"  {finding.topic:{width}}  {finding.found}"
        )
        console.print(line)
        if finding.remedy:
            console.print(" " * (width + 9) + "→ " + finding.remedy, style=styles[finding.state])
