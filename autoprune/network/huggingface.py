"""Models of Hugging Face's transformers, from local files; the only file that imports it.

Nothing is downloaded, no code that comes with a model is run, and no pickle is read.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.network.factory import nearest
from autoprune.network.vision import load_torchvision

CONFIG = "config.json"
_INSTALL = 'pip install "autoprune[huggingface]"'

#: Entries of a configuration that would fetch code or kernels, or describe packed weights.
_IGNORED = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "quantization_config",
    "dtype",
    "torch_dtype",
)
#: Tokens of an example text and samples of an example sound.
_TOKENS, _SAMPLES = 32, 16_000


def config_file(path: str | Path) -> Path:
    """Return the absolute path of the configuration of a model folder.

    Args:
        path: A folder with ``config.json``, or such a file alone.

    Raises:
        ModelError: There is none.
    """
    found = Path(path).expanduser().absolute()
    file = found / CONFIG if found.is_dir() else found
    if not file.is_file():
        raise ModelError(
            f"there is no {file}; hf: takes a local folder with {CONFIG}, or such a file alone. "
            "Nothing is downloaded: fetch the model once, e.g. with `hf download NAME --local-dir "
            "FOLDER`"
        )
    return file


def build_hf(
    path: str | Path, *, values: bool = True, **overrides: Any
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model that a configuration describes, in single precision, and notes on it.

    It is built by the class that the entry ``architectures`` names, else by ``AutoModel``.

    Args:
        path: A folder with ``config.json`` and optionally weights as safetensors, or that file.
        values: Whether to read the weights of a folder; otherwise the architecture is built with
            random ones.
        **overrides: New values of entries of the configuration, e.g. ``num_hidden_layers``.

    Raises:
        ModelError: transformers is missing, the files are damaged or of another form, or the
            weights do not fit.
    """
    file = config_file(path)
    content = _read_config(file)
    with _quiet(load_transformers()) as transformers:
        config = _config(transformers, content, overrides, file)
        cls = _architecture(transformers, config, content, file)
        if not (values and Path(path).expanduser().is_dir() and _has_weights(file)):
            return _built(cls, config, file), ()
        if content.get("quantization_config"):
            raise ModelError(
                f"the weights beside {file} are quantised, and pruning needs plain ones; name "
                f"{file} for the architecture with random ones"
            )
        return _loaded(cls, config, file.parent)


def is_pretrained(model: nn.Module) -> bool:
    """Return whether ``model`` is one of transformers', which say what they take."""
    return hasattr(model, "main_input_name") and hasattr(model, "config")


def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Return keyword arguments that a model of transformers takes, a batch of one.

    Args:
        model: For which :func:`is_pretrained` holds.

    Raises:
        ModelError: What it takes is not known here; the message says how to give it.
    """
    config: Any = model.config
    main = str(model.main_input_name)
    accepted = inspect.signature(model.forward).parameters
    names = [main]
    if "return_loss" in accepted:  # both towers of a contrastive model run
        names += [name for name in ("input_ids", "pixel_values") if name in accepted]
    inputs = {name: _example(name, config) for name in dict.fromkeys(names)}
    unknown = [name for name, value in inputs.items() if value is None]
    if unknown:
        raise ModelError(
            f"no example input {' or '.join(unknown)} is known for {type(model).__name__}; give "
            f"its inputs, e.g. --input {unknown[0]}:1x3x224x224"
        )
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _ids(config.get_text_config(), "max_target_positions")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
        if value is not None
    }


def _example(name: str, config: Any) -> Tensor | None:
    """Return one example input by its name, ``None`` where its shape cannot be told."""
    if name == "input_ids":
        return _ids(config.get_text_config(), "max_position_embeddings")
    if name == "pixel_values":
        return _image(getattr(config, "vision_config", config))
    if name == "input_features":
        return _mel(config)
    return _sound(config) if name == "input_values" else None


def _ids(config: Any, limit: str) -> Tensor:
    """Return token numbers, past the special ones that most vocabularies begin with."""
    most = getattr(config, limit, None) or 2 * _TOKENS
    length = max(min(_TOKENS, most // 2), 1)
    first = min(3, config.vocab_size - 1)
    return torch.randint(first, config.vocab_size, (1, length), generator=_generator())


def _image(config: Any) -> Tensor:
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return torch.randn(1, getattr(config, "num_channels", 3), height, width, generator=_generator())


def _mel(config: Any) -> Tensor | None:
    """Return the mel features of a model like Whisper: two frames per position."""
    bins = getattr(config, "num_mel_bins", None)
    positions = getattr(config, "max_source_positions", None)
    if bins is None or positions is None:
        return None
    return torch.randn(1, bins, 2 * positions, generator=_generator())


def _sound(config: Any) -> Tensor | None:
    """Return the samples of a second for a model that begins with convolutions over them."""
    if getattr(config, "conv_kernel", None) is None:
        return None
    return torch.randn(1, _SAMPLES, generator=_generator())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def load_tokenizer(folder: str | Path) -> Callable[[str], list[int]]:
    """Return what turns a text into tokens: those that mark its begin and end are among them.

    An end-of-text token stands behind every text where the tokenizer has one.

    Args:
        folder: With the files of a tokenizer of transformers.

    Raises:
        ModelError: transformers is missing, or the files are missing or damaged.
    """
    place = Path(folder).expanduser().absolute()
    if not place.is_dir():
        raise ModelError(f"there is no folder {place}; nothing is downloaded")
    with _quiet(load_transformers()) as transformers:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                place, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # damaged files surface as errors of many kinds
            raise ModelError(
                f"no tokenizer can be read from {place}: {_first_line(error)}"
            ) from error
    end = tokenizer.eos_token_id

    def encode(text: str) -> list[int]:
        # A long text is cut into sequences later, so nothing need be said of its length.
        tokens = list(tokenizer(text, verbose=False)["input_ids"])
        return tokens if end is None or tokens[-1:] == [end] else [*tokens, end]

    return encode


def load_transformers() -> ModuleType:
    """Return transformers, which imports torchvision where there is one."""
    with contextlib.suppress(ModelError):
        load_torchvision()
    try:
        import transformers
    except ImportError as error:
        raise ModelError(f"transformers is not installed ({error}); {_INSTALL}") from error
    module: ModuleType = transformers
    return module


@contextlib.contextmanager
def _quiet(transformers: ModuleType) -> Iterator[ModuleType]:
    """Keep transformers' advice and progress bars to itself: what matters comes back as notes."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _read_config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is no JSON ({error}); copy or download it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ModelError(
            f"{file} has no entry 'model_type', so it does not say which architecture it is of; "
            "hf: takes the config.json of a model of transformers"
        )
    return content


def _config(
    transformers: ModuleType, content: Mapping[str, Any], overrides: Mapping[str, Any], file: Path
) -> Any:
    """Return the configuration object, with the arguments of the user in it."""
    kind = content["model_type"]
    known = list(transformers.CONFIG_MAPPING.keys())
    if kind not in known:
        raise ModelError(
            f"{file} is of model type {kind!r}, which transformers {transformers.__version__} does "
            f"not know{nearest(kind, known)}; code that comes with a model is never run. Upgrade "
            "transformers, or build the model yourself and name the function: file.py:factory"
        )
    settings = {key: value for key, value in content.items() if key not in _IGNORED}
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(settings)
        strange = [key for key in overrides if not hasattr(config, key)]
        if strange:
            raise ModelError(
                f"a configuration of type {kind!r} has no entry {', '.join(strange)}"
                + nearest(strange[0], list(config.to_dict()))
            )
        config = transformers.CONFIG_MAPPING[kind].from_dict({**settings, **overrides})
    except ModelError:
        raise
    except Exception as error:  # each configuration checks itself, with errors of its own
        raise ModelError(
            f"transformers refuses {file}{f' with {dict(overrides)}' if overrides else ''}: "
            f"{_first_line(error)}"
        ) from error
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    for part in parts:
        if getattr(part, "use_cache", False):
            part.use_cache = False  # one forward pass has no use for it
        if getattr(part, "use_pretrained_backbone", False):
            part.use_pretrained_backbone = False  # it would be downloaded
    return config


def _architecture(
    transformers: ModuleType, config: Any, content: Mapping[str, Any], file: Path
) -> Any:
    """Return the class to build."""
    names = content.get("architectures") or []
    if not names:
        if type(config) not in transformers.MODEL_MAPPING:
            raise ModelError(f"{file} names no 'architectures', and AutoModel knows none for it")
        return transformers.MODEL_MAPPING[type(config)]
    cls = getattr(transformers, str(names[0]), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ModelError(
            f"{file} names the architecture {names[0]!r}, which transformers "
            f"{transformers.__version__} does not have; code that comes with a model is never run"
        )
    return cls


def _has_weights(file: Path) -> bool:
    """Return whether there are weights beside a configuration."""
    if any(file.parent.glob("*.safetensors")):
        return True
    pickle = next(file.parent.glob("pytorch_model*.bin"), None)
    if pickle is not None:
        raise ModelError(
            f"the weights beside {file} are pickles ({pickle.name}), which are not read; save them "
            f"as safetensors with model.save_pretrained, or name {file} for random ones"
        )
    return False


def _built(cls: Any, config: Any, file: Path) -> nn.Module:
    try:
        model: nn.Module = cls(config)
    except Exception as error:  # any architecture can refuse its numbers in its own way
        raise ModelError(f"{cls.__name__} refuses {file}: {_first_line(error)}") from error
    return model


def _loaded(cls: Any, config: Any, folder: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model with the weights of a folder, and what was left over."""
    try:
        model, report = cls.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # damaged files surface as errors of many kinds
        raise ModelError(
            f"the weights in {folder} cannot be read into {cls.__name__}: {_first_line(error)}"
        ) from error
    missing = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if missing:
        raise ModelError(
            f"the weights in {folder} do not fit {cls.__name__}: {len(missing)} are missing or of "
            f"another shape, such as {missing[0]}; name {folder / CONFIG} alone for random ones"
        )
    extra = sorted(report["unexpected_keys"])
    if extra:
        return model, (f"{len(extra)} weights of {folder} are not used, such as {extra[0]}",)
    return model, ()


def _first_line(error: Exception) -> str:
    """Return the kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
