"""`AutoTokenizer.from_pretrained` with the token ids of tokenizer.json."""

from __future__ import annotations

import os
from typing import Any

import transformers

from neuralchat_lite.checkpoints import open_source
from neuralchat_lite.checkpoints.hub import TOKENIZER_ALONE, resolve
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.table import FAMILIES
from neuralchat_lite.files.json_file import read_json
from neuralchat_lite.loading import tokenizer_of
from neuralchat_lite.transformers.arguments import file_of

FILES = ("gguf_file", "model_file")
FOR_HUB = ("cache_dir", "local_files_only", "revision", "token", "use_auth_token")
# They choose how transformers rebuilds a tokenizer, or find files; here neither is needed.
WITHOUT_EFFECT = (
    "_commit_hash", "config", "force_download", "legacy", "proxies", "resume_download",
    "tokenizer_type", "trust_remote_code", "use_fast",
)  # fmt: skip
# They would give other ids than tokenizer.json, or read another file.
REFUSED = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "from_slow", "split_special_tokens",
    "subfolder",
)  # fmt: skip


class AutoTokenizer(transformers.AutoTokenizer):
    """transformers' AutoTokenizer. For the models of this library, tokenizer.json alone decides
    the token ids, whatever class the folder names."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *inputs: Any, **options: Any
    ) -> Any:
        """Load the tokenizer of a folder or a hub name.

        revision, token, cache_dir, local_files_only: for a hub name, as in transformers
        gguf_file, model_file: the name of a GGUF file in the folder or the repository, whose
            tokenizer is meant
        options: settings of a tokenizer, such as padding_side

        A model type that this library does not run goes to transformers. Raises ConfigError for an
        option that would change the ids, CheckpointError or HubError.
        """
        token = options.get("token") or options.get("use_auth_token")
        found = resolve(
            pretrained_model_name_or_path,
            options.get("revision"),
            token if isinstance(token, str) else None,
            kind=TOKENIZER_ALONE,
            cache_dir=options.get("cache_dir"),
            local_files_only=bool(options.get("local_files_only")),
            file=file_of(options),
        )
        config = found.folder / "config.json"
        model_type = read_json(config).get("model_type") if config.exists() else None
        if isinstance(model_type, str) and model_type not in FAMILIES:
            return super().from_pretrained(pretrained_model_name_or_path, *inputs, **options)
        for name in REFUSED:
            if options.get(name) is not None:
                raise ConfigError(
                    f"{name}={options[name]!r} would give other token ids than tokenizer.json: "
                    "leave it out, or use the AutoTokenizer of transformers"
                )
        aside = (*FOR_HUB, *FILES, *WITHOUT_EFFECT, *REFUSED)
        settings = {name: value for name, value in options.items() if name not in aside}
        if found.folder.is_file():
            return tokenizer_of(open_source(found.folder, found.hub), found.folder, **settings)
        return load_tokenizer(found.folder, **settings)
