"""What transformers and PEFT alone make of a saved model or adapter: ids of a conversation, and answers to it."""

import re
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline


def ids(folder, messages):
    """Ids of a conversation that is to be answered, by the chat template that lies in the folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def ends(folder):
    """The ids at which the saved generation config ends an answer."""
    found = GenerationConfig.from_pretrained(folder).eos_token_id
    return [found] if isinstance(found, int) else found


def answers(folder, conversations, limit=16):
    """Greedy answers to each by `generate` and by a text-generation pipeline, up to the end that was saved.

    Args:
        folder: of an adapter, whose base is where its config says, or of a whole model.

    Returns:
        A pair of texts for each conversation.
    """
    tokenizer, stop, model, found = AutoTokenizer.from_pretrained(folder), ends(folder), load(folder).eval(), []
    given = {"max_new_tokens": limit, "do_sample": False, "eos_token_id": stop}
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    for turns in conversations:
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            said = model.generate(**inputs, **given)[0, inputs["input_ids"].shape[1] :].tolist()
        text = tokenizer.decode(said[:-1] if said[-1] in stop else said)
        found.append((text, pipe(turns, **given)[0]["generated_text"][-1]["content"]))
    return found


def load(folder):
    if not (Path(folder) / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    place = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32), str(folder))


def bare(text):
    """Without what follows at the heading of a next question, and the special tokens that a pipeline does not show."""
    return re.sub(r"<\|\w+\|>", "", text.partition("\n### Instruction:")[0]).strip()
