"""A safetensors file whose header, digest and tensors come from one descriptor."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.safetensors_file import REMEDY, StoredTensor, read_header
from neuralchat_lite.files.unchanged import UnchangedFile


class MappedFile(UnchangedFile):
    """Its tensors lie in the page cache, uncopied.

    header: the tensors that it has, by name
    Raises CheckpointError when the file is missing, damaged or being written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.header: dict[str, StoredTensor] = read_header(path, self.descriptor)
        self._view = self._map()

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._view.get_tensor(name)
        return tensor

    def start(self, count: int) -> bytes:
        """The first bytes of the file."""
        return os.pread(self.descriptor, count, 0)

    def _map(self) -> Any:
        try:
            # The safetensors library opens files by name; this name is that of the descriptor, so
            # that it maps the same file whatever has the path by now.
            own = Path(f"/proc/self/fd/{self.descriptor}")
            if own.exists():
                return safe_open(own, framework="pt")
            view = safe_open(self.path, framework="pt")
            self.require_unchanged()
            return view
        except SafetensorError as error:
            if "allocate memory" in str(error):  # it cannot be mapped, and is as whole as before
                raise MemoryError(f"{self.path}: {error}") from None
            raise CheckpointError(f"{self.path} is damaged ({error}): {REMEDY}") from None
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise
            raise CheckpointError(
                f"{self.path} cannot be mapped ({error.strerror or error}): check the file, its "
                "permissions and the limit of open files (`ulimit -n`)"
            ) from None
