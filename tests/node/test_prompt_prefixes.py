"""Which requests get which keys, and so share KV with whom."""

import pytest

from tokenmux.core.prefix import Prefix
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import Submit
from tokenmux.messages.setups import DeviceSetup, NodeSetup, PagedKv
from tokenmux.node.prompt_prefixes import PromptPrefixes
from tokenmux.testing import make_device, make_host, make_request

CELL = 16


def prefix(
    n_tokens: int,
    *,
    tenant: str = "a",
    model: str = "m",
    enabled: bool = True,
    joins_tenants: bool = False,
    prefix_cache: bool = True,
    salt: str | None = None,
    paged_kv: PagedKv = "exact",
    told: int | None = None,
) -> Prefix | None:
    """What a request with a prompt of 0, 1, 2, ... gets."""
    device = DeviceSetup(make_device(prefill_chunk_tokens=CELL), paged_kv=paged_kv)
    setup = NodeSetup((device,), make_host(), 0, prefix_cache=enabled, joins_tenants=joins_tenants)
    request = make_request("r", model, n_prompt=n_tokens, tenant=tenant)
    submit = Submit(
        request,
        tuple(range(n_tokens)),
        Sampling(),
        n_prompt_likeliest=told,
        prefix_cache=prefix_cache,
        cache_salt=salt,
    )
    return PromptPrefixes(setup).request_of(submit).prefix


def keys(n_tokens: int, **options: object) -> tuple[bytes, ...]:
    found = prefix(n_tokens, **options)  # type: ignore[arg-type]
    assert found is not None
    return found.keys


def test_prompts_that_begin_alike_have_the_same_first_keys() -> None:
    assert [len(keys(n)) for n in (16, 31, 32, 100)] == [1, 1, 2, 6]
    assert keys(100)[:2] == keys(35)


@pytest.mark.parametrize("options", [{"tenant": "b"}, {"model": "n"}, {"salt": "pepper"}], ids=str)
def test_other_tenants_models_and_salts_share_nothing(options: dict[str, str]) -> None:
    assert not {*keys(100)} & {*keys(100, **options)}


def test_tenants_that_the_operator_joins_share() -> None:
    assert keys(100, tenant="a", joins_tenants=True) == keys(100, tenant="b", joins_tenants=True)


@pytest.mark.parametrize("joins_tenants", [True, False])
def test_a_salt_isolates_within_what_shares(joins_tenants: bool) -> None:
    mine = keys(100, joins_tenants=joins_tenants, salt="pepper")
    assert mine == keys(100, joins_tenants=joins_tenants, salt="pepper")
    for others in ({}, {"salt": "a"}, {"salt": "paprika"}):
        assert not {*mine} & {*keys(100, joins_tenants=joins_tenants, **others)}
    other_tenant = keys(100, joins_tenants=joins_tenants, salt="pepper", tenant="b")
    assert (mine == other_tenant) is joins_tenants


def test_a_request_may_do_without_the_cache() -> None:
    assert prefix(100, prefix_cache=False) is None


@pytest.mark.parametrize("options", [{"enabled": False}, {"paged_kv": "int8"}, {"n_tokens": 15}], ids=str)
def test_there_are_no_keys_without_cache_or_exact_paging_or_a_whole_cell(options: dict[str, object]) -> None:
    assert prefix(**{"n_tokens": 100, **options}) is None  # type: ignore[arg-type]


def test_who_is_told_of_the_prompt_computes_it_and_gives_it_to_others() -> None:
    told = prefix(100, told=0)
    assert told is not None
    assert (told.reads, told.writes) == (False, True)
