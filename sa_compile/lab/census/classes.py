"""The model classes that the census looks at, by what they are for."""

from __future__ import annotations

from functools import cache

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

CAUSAL, MULTIMODAL, CLASSIFICATION = "causal", "multimodal", "classification"
KINDS = (CAUSAL, MULTIMODAL, CLASSIFICATION)
# In the multimodal mapping too, but with no argument for an image or sound.
_TEXT_ONLY = frozenset({"Mistral4ForCausalLM", "KyutaiSpeechToTextForConditionalGeneration"})


@cache
def model_names(kind: str = CAUSAL) -> dict[str, str]:
    """Class name -> model type of a kind's classes.

    Those of its auto mapping, and for the causal language models any other ``*ForCausalLM``. A class is of
    one kind: what takes an image or a sound is multimodal.
    """
    multimodal = _by_class(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
    for name in _TEXT_ONLY:
        multimodal.pop(name, None)
    if kind == MULTIMODAL:
        names = multimodal
    elif kind == CLASSIFICATION:
        names = _by_class(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    else:
        names = _by_class(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        for class_name in dir(transformers):
            if class_name.endswith("ForCausalLM") and not class_name.startswith("AutoModel"):
                names.setdefault(class_name, getattr(transformers, class_name).config_class.model_type)
        names = {name: names[name] for name in names if name not in multimodal}
    return dict(sorted(names.items(), key=lambda item: item[0].lower()))


def _by_class(mapping: dict[str, str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for model_type, class_name in mapping.items():
        names.setdefault(class_name, model_type)
    return names


@cache
def kind_of(class_name: str) -> str:
    """The kind of a class; ValueError if it is of none."""
    for kind in KINDS:
        if class_name in model_names(kind):
            return kind
    raise ValueError(f"{class_name!r} is none of the classes that the census looks at")
