"""A request that cannot be answered as it is, with the field at fault."""

from __future__ import annotations

from deltatune.core.errors import DeltatuneError


class InvalidRequest(DeltatuneError):
    """A request that the client has to change. `param` names its field, `code` what is wrong in one word."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status
