"""Proves that a database that cannot be opened raises an error of ours, which names the cause and no password."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.errors import ConfigError, IndexRefused
from storage.index.connection import connect, migrate


def test_a_url_that_is_none_does_not_show_its_password() -> None:
    with pytest.raises(ConfigError, match="is not a database URL") as error:
        connect("postgresql+psycopg://user:secret@host:port/name")
    assert "secret" not in str(error.value)


def test_a_driver_that_is_not_installed_is_named() -> None:
    with pytest.raises(ConfigError, match=r"psycopg2cffi.*pip install 'latent-pacs\[postgresql\]'"):
        connect("postgresql+psycopg2cffi://user@host/name")


def test_a_folder_that_is_missing_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(IndexRefused, match="look whether its file and folder are there"):
        migrate(connect(f"sqlite:///{tmp_path / 'none' / 'index.sqlite'}"))


def test_a_password_with_an_at_sign_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="write each @ of the user and the password as %40") as caught:
        connect("postgresql+psycopg://pacs:Sec@ret9@dbhost/x")
    assert "ret9" not in str(caught.value)
