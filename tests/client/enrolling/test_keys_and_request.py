"""Keys are made where they stay, and a request holds none of them."""

from __future__ import annotations

import shutil
import stat

import pytest

from hansa_common.merchant_keys import read_keys

PRIVATE = {"identity.key", "node.key", "tls.key"}


def test_keys_are_made_for_this_user_alone_and_none_is_shown(consortium):
    result = consortium.enroll()
    assert result.exit_code == 0
    assert PRIVATE | {"node.pub", "alder.request.json"} == set(consortium.files())
    assert stat.S_IMODE(consortium.state.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in consortium.state.iterdir())
    held = read_keys(consortium.state)
    assert held.identity_key in result.stdout
    assert held.identity.hex() not in result.stdout + result.stderr
    for name in PRIVATE:
        assert consortium.files()[name].strip() not in consortium.files()["alder.request.json"]


def test_enrolling_again_asks_again_with_the_same_keys(consortium):
    consortium.enroll()
    before = consortium.files()
    assert consortium.enroll().exit_code == 0
    assert {name: before[name] for name in PRIVATE} == {name: consortium.files()[name] for name in PRIVATE}


@pytest.mark.parametrize("name", ["../alder", "/alder", "..", ".alder", "a/b", "", "a" * 65, "a\nb", "é"])
def test_name_that_leads_elsewhere_is_refused_before_a_folder_is_made(hansa, tmp_path, monkeypatch, name, refused):
    monkeypatch.chdir(tmp_path)
    refused(hansa("client", "enroll", "--", name), "cannot be a merchant's name")
    assert not list(tmp_path.rglob("*"))


def test_state_that_others_can_open_is_refused(consortium, refused):
    consortium.state.mkdir(mode=0o755)
    refused(consortium.enroll(), "chmod 700")
    assert not list(consortium.state.iterdir())


@pytest.mark.parametrize("name", sorted(PRIVATE))
def test_key_that_others_can_read_is_refused(consortium, name, refused):
    consortium.enroll()
    (consortium.state / name).chmod(0o640)
    refused(consortium.enroll(), "others can read", name, "chmod 600")


def test_kit_or_renewal_without_keys_says_what_comes_first(answered, refused):
    shutil.rmtree(answered.state)
    refused(answered.enroll("--kit", answered.kit), "identity.key", "hansa client enroll")
    refused(answered.enroll("--renew"), "identity.key", "hansa client enroll")
    assert not answered.state.exists()


def test_kit_and_renewal_at_once_is_refused(answered, refused):
    refused(answered.enroll("--kit", answered.kit, "--renew"), "give one of them")
