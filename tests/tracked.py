"""What trackers have written, read back from their own files: {name: {step: value}}, configuration and artifacts."""

import json
import sqlite3
import struct
from collections import defaultdict
from types import SimpleNamespace

BLOCK, HEADER = 32768, 7  # of the log format of LevelDB, in which W&B writes a run that is offline


def of_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = {name: {one.step: one.value for one in found.Scalars(name)} for name in found.Tags()["scalars"]}
    texts = {name.removesuffix("/text_summary"): found.Tensors(name) for name in found.Tags()["tensors"]}
    texts = {name: events[-1].tensor_proto.string_val[0].decode() for name, events in texts.items()}
    config = json.loads(texts.pop("arguments"))
    return SimpleNamespace(scalars=scalars, config=config, artifacts=sorted(texts), runs=1, names={folder.name})


def of_wandb(folder):
    from wandb.proto import wandb_internal_pb2 as proto

    scalars, config, artifacts, runs, names = defaultdict(dict), {}, [], set(), set()
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records(file.read_bytes()):
            record = proto.Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                runs.add(record.run.run_id)
                names.add((record.run.project, record.run.display_name))
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                values = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                for name, value in values.items():
                    if not name.startswith("_"):
                        scalars[name][record.history.step.num] = value
            elif kind == "artifact":
                artifacts += [entry.path for entry in record.artifact.manifest.contents]
            elif kind == "request" and record.request.HasField("log_artifact"):
                artifacts += [entry.path for entry in record.request.log_artifact.artifact.manifest.contents]
    return SimpleNamespace(
        scalars=dict(scalars), config=config, artifacts=sorted(artifacts), runs=len(runs), names=names
    )


def records(data):
    """The records of a file in LevelDB's log format, which begins with a header of W&B."""
    at, part = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + HEADER])
        part += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or its last piece
            yield part
            part = b""


def of_trackio(folder):
    place = folder / "trackio"
    opened = sqlite3.connect(place / "tunebook.db")
    scalars, runs = defaultdict(dict), set()
    for run, step, values in opened.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id"):
        runs.add(run)
        for name, value in json.loads(values).items():
            scalars[name][step] = value
    ((config,),) = opened.execute("SELECT config FROM configs").fetchall()
    artifacts = [name for (name,) in opened.execute("SELECT name FROM artifacts")]
    opened.close()
    return SimpleNamespace(
        scalars=dict(scalars), config=json.loads(config), artifacts=sorted(artifacts), runs=len(runs), names=runs
    )


READERS = {"tensorboard": of_tensorboard, "wandb": of_wandb, "trackio": of_trackio}
