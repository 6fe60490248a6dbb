"""Shipped profiles and models, the user's config file, and the folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sdcli import settings
from sdcli.errors import BadRequest, SdcliError
from sdcli.machine import iphone_share_bytes
from sdcli.units import GIB

KNOWN = {"mem_limit": None, "steps": 20, "on_limit": "degrade", "model": None}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's config file goes; it is not there yet."""
    path = tmp_path / "my config.toml"
    monkeypatch.setenv("SDCLI_CONFIG", str(path))
    return path


def test_every_shipped_profile_can_be_read() -> None:
    names = settings.config_names("profiles")
    assert {"iphone-4gb", "iphone-6gb"} <= set(names)
    assert names == sorted(names)
    for name in names:
        profile = settings.read_profile(name)
        assert profile.name == name and profile.limit_bytes > 0 and profile.about.endswith(".")
        assert profile.limit_from and profile.machine.speed_from and profile.machine.processor
        assert profile.machine.dtype in ("fp32", "fp16", "bf16")
        assert 1e9 < profile.machine.flops < 1e13 and 1e7 < profile.machine.disk_bytes < 1e10


@pytest.mark.parametrize("name", settings.config_names("profiles"))
def test_the_ceiling_of_a_profile_is_what_auto_takes_of_its_memory(name: str) -> None:
    """So that `plan` on the machine itself has the ceiling that `plan --profile` has elsewhere."""
    profile = settings.read_profile(name)
    assert abs(profile.limit_bytes / iphone_share_bytes(profile.machine.memory_bytes) - 1) < 0.001


def test_the_iphones_have_the_limits_of_the_contract() -> None:
    assert settings.read_profile("iphone-4gb").limit_bytes == 2 * GIB
    assert settings.read_profile("iphone-6gb").limit_bytes == int(2.8 * GIB)


@pytest.mark.parametrize(
    "name",
    ["", "iphone", "iphone-6gb.toml", "IPHONE-6GB", "../models/sd15", "/etc/passwd", "a\0b", "\x1b[2J", "x" * 9999],
)
def test_an_unknown_profile_is_a_usage_error_that_names_the_known(name: str) -> None:
    with pytest.raises(BadRequest, match=r"no such profile: .*; there are .*iphone-4gb, iphone-6gb") as caught:
        settings.read_profile(name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_of_an_unknown_profile_the_nearest_are_named() -> None:
    with pytest.raises(BadRequest, match="no such profile: 'raspberry-pi-5'; nearest to it: raspberry-pi-5-"):
        settings.read_profile("raspberry-pi-5")


def test_an_unknown_model_is_a_usage_error() -> None:
    with pytest.raises(BadRequest, match="no such model: 'sd99'"):
        settings.read_config("models", "sd99")


def test_the_config_file_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDCLI_CONFIG", str(tmp_path / "c.toml"))
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path / "cache"))
    assert settings.config_path() == tmp_path / "c.toml"
    assert settings.cache_dir() == tmp_path / "cache"


@pytest.mark.skipif(sys.platform == "win32", reason="the folders of Unix")
def test_without_a_word_from_the_environment_the_folders_are_the_platform_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("SDCLI_CONFIG", "SDCLI_CACHE", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.config_path() == tmp_path / ".config" / "sdcli" / "config.toml"
    assert settings.cache_dir() == tmp_path / ".cache" / "sdcli"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert settings.config_path() == tmp_path / "settings" / "sdcli" / "config.toml"
    assert settings.cache_dir() == tmp_path / "caches" / "sdcli"
    for name in ("SDCLI_CONFIG", "SDCLI_CACHE", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    assert settings.config_path() == tmp_path / ".config" / "sdcli" / "config.toml"


def test_hyphens_and_underscores_are_alike(config: Path) -> None:
    config.write_text('mem-limit = "2GiB"\non_limit = "kill"\nsteps = 7\n', "utf-8")
    assert settings.read_user_config(KNOWN) == {"mem_limit": "2GiB", "on_limit": "kill", "steps": 7}


def test_an_empty_file_is_no_settings(config: Path) -> None:
    config.write_text("# nothing yet\n", "utf-8")
    assert settings.read_user_config(KNOWN) == {}


def test_a_default_file_that_is_absent_is_no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SDCLI_CONFIG", raising=False)
    for name in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    assert settings.read_user_config(KNOWN) == {}
    (tmp_path / "sdcli").mkdir()
    (tmp_path / "sdcli" / "config.toml").write_text("steps = 3\n", "utf-8")
    assert settings.read_user_config(KNOWN) == {"steps": 3}


def test_a_named_file_that_is_absent_is_a_failure(config: Path) -> None:
    with pytest.raises(SdcliError, match=r"my config\.toml' of SDCLI_CONFIG is not there") as caught:
        settings.read_user_config(KNOWN)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("key", ["stpes", "mem limit", "", "Steps", "steps.x", "\x1b[2J", "x" * 9999, "SDCLI_STEPS"])
def test_a_setting_that_is_no_option_is_a_usage_error_that_names_the_known(config: Path, key: str) -> None:
    escaped = key.replace("\x1b", "\\u001b")
    config.write_text(f'"{escaped}" = 1\n', "utf-8")
    with pytest.raises(BadRequest, match=r"unknown setting .*mem_limit, model, on_limit, steps") as caught:
        settings.read_user_config(KNOWN)
    message = str(caught.value)
    assert message.isprintable() and "my config.toml" in message and len(message) < 300


def test_a_table_is_no_setting(config: Path) -> None:
    config.write_text("[txt2img]\nsteps = 1\n", "utf-8")
    with pytest.raises(BadRequest, match="unknown setting 'txt2img'"):
        settings.read_user_config(KNOWN)


@pytest.mark.parametrize(
    "content",
    [
        b"steps",
        b"steps = ",
        b"= 1",
        b"steps = 1\nsteps = 2",
        b'{"steps": 1}',
        b"steps = \xff",
        b"\0",
        b"\x80\x04}\x94.",
    ],
    ids=repr,
)
def test_a_file_that_is_not_toml_is_refused_in_one_line(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    with pytest.raises(SdcliError, match=r"cannot read the config file .*my config") as caught:
        settings.read_user_config(KNOWN)
    assert caught.value.exit_code == 1 and str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_a_folder_or_a_loop_in_place_of_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for place in (str(tmp_path), str(tmp_path / "loop"), "x" * 5000, os.devnull + "/config.toml"):
        monkeypatch.setenv("SDCLI_CONFIG", place)
        with pytest.raises(SdcliError, match="cannot read the config file") as caught:
            settings.read_user_config(KNOWN)
        assert caught.value.exit_code == 1


def test_a_file_nested_beyond_reason_is_refused(config: Path) -> None:
    config.write_text("steps = " + "[" * 5000, "utf-8")
    with pytest.raises(SdcliError, match="cannot read the config file"):
        settings.read_user_config(KNOWN)


@pytest.mark.skipif(sys.platform == "win32", reason="the home of Unix")
def test_a_user_without_a_home_gets_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def no_such_user(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "SDCLI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_such_user)
    with pytest.raises(SdcliError, match="SDCLI_CACHE"):
        settings.cache_dir()
    monkeypatch.setenv("HOME", "")
    with pytest.raises(SdcliError, match="SDCLI_CACHE"):
        settings.cache_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="the home of Unix")
@pytest.mark.parametrize("home", [None, ""], ids=["unset", "empty"])
def test_without_home_in_the_environment_the_list_of_users_knows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None
) -> None:
    import pwd

    class Entry:
        pw_dir = str(tmp_path)

    monkeypatch.setattr(pwd, "getpwuid", lambda _: Entry)
    for name in ("HOME", "SDCLI_CONFIG", "SDCLI_CACHE", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    assert settings.cache_dir() == tmp_path / ".cache" / "sdcli"
    assert settings.config_path() == tmp_path / ".config" / "sdcli" / "config.toml"
    assert settings.at_home("~/x") == str(tmp_path / "x")


@pytest.mark.parametrize("relative", ["here", "./here", "../here", ".", "~/here"])
def test_a_relative_xdg_folder_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, relative: str) -> None:
    monkeypatch.delenv("SDCLI_CACHE")
    for name, value in {"HOME": str(tmp_path), "XDG_CONFIG_HOME": relative, "XDG_CACHE_HOME": relative}.items():
        monkeypatch.setenv(name, value)
    assert settings.cache_dir() == tmp_path / ".cache" / "sdcli"
    assert settings.config_path() == tmp_path / ".config" / "sdcli" / "config.toml"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("~", "HOME"),
        ("~/", "HOME/"),
        ("~/a/~/b", "HOME/a/~/b"),
        ("~//a", "HOME//a"),
        ("~root/x", "/root/x"),
        ("~nobody-of-that-name/x", "~nobody-of-that-name/x"),
        ("~fox.png", "~fox.png"),
        ("./~/x", "./~/x"),
        ("a/~", "a/~"),
        ("", ""),
        ("-", "-"),
        ("/~", "/~"),
        ("ü/\0", "ü/\0"),
    ],
)
def test_a_leading_tilde_is_a_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, place: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.at_home(path) == place.replace("HOME", str(tmp_path))


def test_a_home_of_nobody_that_a_user_can_be_is_a_name_as_it_is() -> None:
    assert settings.at_home("~\0x/y") == "~\0x/y"


def test_config_and_cache_may_be_named_from_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"HOME": str(tmp_path), "SDCLI_CONFIG": "~/c.toml", "SDCLI_CACHE": "~/cache"}.items():
        monkeypatch.setenv(name, value)
    assert settings.config_path() == tmp_path / "c.toml"
    assert settings.cache_dir() == tmp_path / "cache"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_is_no_part_of_the_settings(config: Path, end: bytes) -> None:
    config.write_bytes(b"\xef\xbb\xbfsteps = 7" + end + b"model = 'demo'" + end)
    assert settings.read_user_config(KNOWN) == {"steps": 7, "model": "demo"}
    config.write_bytes(b"\xef\xbb\xbf")
    assert settings.read_user_config(KNOWN) == {}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_another_encoding_is_named_as_the_trouble(config: Path, encoding: str) -> None:
    config.write_bytes("model = 'ü'\n".encode(encoding))
    with pytest.raises(SdcliError, match=r"cannot read the config file .*my config\.toml.*: it is not UTF-8"):
        settings.read_user_config(KNOWN)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_default_folder_that_may_not_be_looked_into_is_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    path = settings.config_path()
    path.parent.mkdir(parents=True)
    path.write_text("steps = 7\n")
    path.parent.chmod(0o700)
    os.seteuid(65534)
    try:
        assert settings.read_user_config(KNOWN) == {}
        monkeypatch.setenv("SDCLI_CONFIG", str(path))  # one that is named is read, or it is said that it cannot be
        with pytest.raises(SdcliError, match=r"cannot read the config file .*Permission denied"):
            settings.read_user_config(KNOWN)
    finally:
        os.seteuid(0)
    assert settings.read_user_config(KNOWN) == {"steps": 7}
