"""Records what llama.cpp's converter writes of the shape and rope of published models, in
`tests/conversion/model_configs.py`.

Run it in the environment of `make_gguf.py`, with the converter's source archive (see there):

    python tests/goldens/make_gguf_metadata.py llama_cpp_python-0.3.36/vendor/llama.cpp/convert_hf_to_gguf.py

The model classes of the converter are made on a folder that has a config.json and no weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

CONFIGS_FOLDER = Path(__file__).parents[1] / "conversion"
OUT = Path(__file__).parent / "gguf" / "metadata.json"


def converted(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Architecture, the keys under its name, and the tensor of rope factors, if there is one."""
    import gguf
    from conversion.base import ModelBase

    from conversion import get_model_class

    (folder / "config.json").write_text(json.dumps(config))
    kind = get_model_class(config["architectures"][0])
    hparams = ModelBase.load_hparams(folder, False)
    kind.index_tensors = lambda *args, **kwargs: {}
    model = kind(folder, gguf.LlamaFileType.ALL_F32, folder / "out.gguf", hparams=hparams)
    model = getattr(model, "impl", model)
    model.set_gguf_parameters()
    (metadata,) = model.gguf_writer.kv_data
    architecture = model.gguf_writer.arch
    factors = [tensor.tolist() for _, tensor in model.generate_extra_tensors()]
    return {
        "architecture": architecture,
        "metadata": {
            key: [value.value, value.type.name] for key, value in metadata.items() if key.startswith(architecture + ".")
        },
        "rope_factors": factors[0] if factors else None,
    }


def main() -> None:
    # Not the root of this project: the converter's package has the name of one of ours.
    archive = Path(sys.argv[1]).resolve().parent
    sys.path[:0] = [str(archive), str(archive / "gguf-py"), str(CONFIGS_FOLDER)]
    from model_configs import CONFIGS

    found: dict[str, Any] = {}
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = converted(config, Path(folder))
    text = json.dumps(found, indent=1)
    OUT.write_text(text + "\n")


if __name__ == "__main__":
    main()
