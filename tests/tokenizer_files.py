"""Tokenizer files made by the tests."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers


def write_sentencepiece_like(folder: Path) -> None:
    """A tokenizer.json in the manner of Llama 2: byte fallback, a leading space, a beginning token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))  # noqa: S106  a token
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(
        ["the daemon elects a coordinator and the nodes make a plan " * 20], trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    written = json.loads(tokenizer.to_str())
    # Byte tokens are ordinary tokens in such a file.
    written["added_tokens"] = [token for token in written["added_tokens"] if token["id"] < 3]
    (folder / "tokenizer.json").write_text(json.dumps(written))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
