"""An untrained BLIP and encoders of texts, of the least size."""

import json
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

SIDE = 16
_WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] ? a red blue circle square left of the and yes no image"
_WORDS += " contains green ring above triangle yellow"


def _tokenizer(folder: Path) -> BertTokenizer:
    """BERT's, of few words; the file is the one that BERT's come in."""
    (folder / "vocab.txt").write_text("\n".join(_WORDS.split()), encoding="utf-8")
    return BertTokenizer.from_pretrained(folder)


def save_tiny_blip(folder: Path, kind: str) -> str:
    """Model for `vqa` or `caption`, tokenizer and image processor in one folder; its path."""
    tokenizer = _tokenizer(folder)
    words = len(tokenizer)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    common |= {"num_attention_heads": 2}
    config = BlipConfig(
        # Two tokens more, as BLIP has: one begins an answer, one a question.
        text_config={
            **common,
            "encoder_hidden_size": 16,
            "vocab_size": words + 2,
            "bos_token_id": words,
            "pad_token_id": tokenizer.pad_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "max_position_embeddings": 64,
            "initializer_range": 0.5,
        },
        vision_config={**common, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
    )
    model = {"vqa": BlipForQuestionAnswering, "caption": BlipForConditionalGeneration}[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = model(config)
        for parameter in made.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4)
        made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


def save_tiny_encoder(folder: Path) -> str:
    """A BERT and its tokenizer."""
    tokenizer = _tokenizer(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_tiny_roberta(folder: Path) -> str:
    """Likewise a RoBERTa, whose tokens are of bytes and know the words `red` and ` red`."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = [*special, "Ġ", "r", "e", "d", "re", "red", "Ġred"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d\nĠ red\n", encoding="utf-8")
    RobertaTokenizer.from_pretrained(folder).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    RobertaModel(config).save_pretrained(folder)
    return str(folder)
