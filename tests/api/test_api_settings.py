from __future__ import annotations

from pathlib import Path

import pytest

from acdc.errors import SpecError
from acdc.settings import load_settings
from acdc.store import migrate


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("ACDC_")]:
        monkeypatch.delenv(name)


def test_defaults_follow_the_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACDC_DATA_DIR", str(tmp_path))
    settings = load_settings()
    assert settings.database_url == f"sqlite:///{tmp_path}/acdc.db"
    assert settings.artefacts_url == f"file://{tmp_path}/artefacts"
    assert settings.url == "http://127.0.0.1:8420"
    assert settings.is_loopback


def test_given_options_stand_above_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACDC_PORT", "9000")
    monkeypatch.setenv("ACDC_HOST", "::1")
    assert load_settings().url == "http://[::1]:9000"
    assert load_settings(port=9001).url == "http://[::1]:9001"


def test_every_bad_variable_is_named_and_no_value_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACDC_PORT", "many")
    monkeypatch.setenv("ACDC_LEASE_S", "-1")
    monkeypatch.setenv("ACDC_API_KEY", "geheim\u00fc")
    with pytest.raises(SpecError) as caught:
        load_settings()
    assert {fault.where for fault in caught.value.faults} == {"ACDC_PORT", "ACDC_LEASE_S", "ACDC_API_KEY"}
    assert "geheim" not in str(caught.value)


def test_variable_that_means_nothing_is_named_with_the_nearest_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACDC_PROT", "9000")
    monkeypatch.setenv("ACDC_LEASE_S", "-1")
    with pytest.raises(SpecError) as caught:
        load_settings()
    assert {fault.where for fault in caught.value.faults} == {"ACDC_PROT", "ACDC_LEASE_S"}
    assert "did you mean ACDC_PORT?" in str(caught.value)


@pytest.mark.parametrize("name", ["a?b=c", "%41", "100%", "a b+c", "ü#x"])
def test_database_lies_in_the_data_directory_whatever_its_name(tmp_path: Path, name: str) -> None:
    url = load_settings(data_dir=tmp_path / name).database_url
    migrate(url)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "acdc.db").is_file()
    assert load_settings(data_dir=tmp_path / name, database_url=url).database_url == url


def test_heartbeat_slower_than_half_a_lease_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACDC_BEAT_S", "20")
    with pytest.raises(SpecError, match="ACDC_BEAT_S=20"):
        load_settings()
    monkeypatch.setenv("ACDC_LEASE_S", "40")
    assert load_settings().beat_s == 20


def test_lists_are_separated_by_commas_and_empty_means_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACDC_ALLOWED_MODELS", "hub:a/*, smollm2-135m-instruct-q4")
    monkeypatch.setenv("ACDC_ALLOWED_DIRS", "/models,/more")
    monkeypatch.setenv("ACDC_HOSTS", "")
    settings = load_settings()
    assert settings.allowed_models == ("hub:a/*", "smollm2-135m-instruct-q4")
    assert settings.allowed_dirs == (Path("/models"), Path("/more"))
    assert settings.hosts is None


def test_key_does_not_show_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACDC_API_KEY", "geheim")
    assert "geheim" not in repr(load_settings())


@pytest.mark.parametrize(
    ("host", "is_loopback"), [("localhost", True), ("127.0.0.2", True), ("0.0.0.0", False), ("box", False)]
)
def test_loopback_is_known_by_its_address(host: str, is_loopback: bool) -> None:
    assert load_settings(host=host).is_loopback is is_loopback
