"""Every law of `deltatune.testing` × every registered method and some configurations × four tiny models.

A new method is tested by being registered: nothing here names the methods, only VARIANTS of some.
"""

from functools import cache

import pytest
import torch

from deltatune import DeltatuneError, Host, parse
from deltatune.core.registry import registry
from deltatune.testing import LAWS, MODELS, SLOW_LAWS, applies, check_method, demand, inputs, tiny
from deltatune.testing.tiny_models import CONFIGS

VARIANTS: dict[str, tuple[str, ...]] = {
    # Slices of a fused, transposed projection, the whole of it, and matrices of other widths.
    "LoRA(r=3, sites='*.attn.{q,k,v,o}', dropout=0.1)": ("llama",),
    "LoRA(r=3, sites='*.attn.q')": ("gpt2",),
    "LoRA(r=2, sites='*.attn.{qkv,q}')": ("gpt2",),
    "LoRA(r=3, alpha=2.0, sites='*.ffn.{in,out}')": ("bert", "gpt2"),
    "LoRA(r=3, sites=('*.cross.{q,v}', 'decoder.*.ffn.out'))": ("t5",),
    # Ranks and rates of their own; token embeddings, alone and beside virtual tokens.
    "LoRA(r=4, sites='*.{attn.q,ffn.in}', ranks=(('*.ffn.*', 2),), ratio=16.0)": ("bert", "llama"),
    "LoRA(r=3, sites=('embed', '*.attn.q'), dropout=0.1)": ("bert", "llama"),
    "LoRA(r=3, sites='*.embed')": ("t5",),
    "LoRA(r=3, init='gaussian', ratio=4.0, sites=('embed', '*.attn.q'))": ("bert", "gpt2"),
    "DoRA(r=3, init='gaussian')": ("llama",),
    "Prompt(length=4) + LoRA(r=2, sites='embed')": ("gpt2", "llama"),
    # The rest of the family: the other road of each, sliced, fused and other maps.
    "DoRA(r=3, norm='exact', dropout=0.1, sites='*.{attn.o,ffn.in}')": ("bert", "llama"),
    "DoRA(r=3, sites='*.attn.{qkv,q}')": ("gpt2",),
    "PiSSA(r=3, alpha=6.0, niter=4, sites='*.{attn.q,ffn.out}')": ("bert", "gpt2"),
    "VeRA(r=7, d_initial=0.5, save_projection=False, sites='*.{attn.v,ffn.in}')": ("gpt2", "llama"),
    "IA3(sites=('*.attn.{v,heads}', '*.ffn.act')) + LoRA(r=2, sites='*.{attn.o,ffn.out}')": ("bert", "llama"),
    # Products of matrices: through their pairs and as a whole, slices, factors of other shapes.
    "LoHa(r=2, sites='*.attn.{q,k,o}', ranks=(('*.attn.o', 3),))": ("gpt2", "llama"),
    "LoKr(r=2, decompose='both', factor=16, init='second', sites='*.{attn.v,ffn.in}')": ("gpt2", "t5"),
    "FourierFT(n=40, init='normal', seed=3, sites='*.{attn.o,ffn.out}')": ("gpt2", "t5"),
    "VBLoRA(vectors=7, length=8, k=3, dropout=0.1, sites=('*.attn.{q,o}', '*.ffn.in'))": ("gpt2", "llama"),
    # Rotations: exact, shared by all blocks, of several factors; beside biases and without.
    "OFT(block=4, terms=0, blocks='shared', sites=('*.attn.q', '*.ffn.{in,out}'))": ("gpt2", "llama"),
    "BOFT(block=4, factors=3, sites=('*.attn.{k,o}', '*.ffn.out'))": ("bert", "gpt2", "t5"),
    "LNTuning(sites='*.norm.0') + LoRA(r=2)": ("bert", "t5"),
    "LoRA(r=4, ranks=(('*.attn.v', 2),), scaling='r')": ("bert",),
    # Each form of a bottleneck, with and without LayerNorms.
    "Bottleneck(size=5, norms=True)": ("llama", "t5"),
    "Bottleneck(size=5, form='pfeiffer', norms=True)": ("bert",),
    "Bottleneck(size=5, form='parallel', scale=4.0, activation='gelu')": ("t5",),
    "Bottleneck(size=5, activation='swish', init='small', sites='*.attn')": ("gpt2",),
    "Bottleneck(size=5, form='parallel', scale='learned', dropout=0.1)": ("llama",),
    "Compacter(size=8, n=2, form='pfeiffer', norms=False, activation='relu')": ("bert",),
    "Compacter(size=6, n=1, form='parallel', sites='*.{ffn,cross}')": ("t5",),
    "AdapterDrop(size=5, drop=1, form='houlsby', init='small')": ("bert", "t5"),
    "AdapterDrop(size=5, drop=1, robust=True, form='parallel', activation='swish')": ("gpt2", "t5"),
    # ReFT at some of a prompt's tokens: its last ones are known in encoders, and with a cache.
    "ReFT(r=3, init='random', sites='*.1.residual')": ("bert", "gpt2", "t5"),
    "ReFT(r=3, first=2)": ("gpt2", "llama", "t5"),
    "ReFT(r=3, first=1, last=2, tied=False)": ("bert",),
    "ReFT(r=3, form='direft', init='random', first=3, last=1)": ("bert",),
    "AdapterFusion((Houlsby(4, False), Bottleneck(size=3, init='small'), Houlsby(2, False)))": ("bert", "t5"),
    # Prefixes: through an MLP, without shifted positions, at one of T5's three attentions only.
    "Prefix(length=3, mlp=5)": ("bert", "llama", "t5"),
    "Prefix(length=3, shift_positions=False)": ("bert", "gpt2"),
    "Prefix(length=3, sites='decoder.*.cross.kv')": ("t5",),
    "Prefix(length=3, mlp=5, dropout=0.2)": ("gpt2", "t5"),
    "Prefix(length=3, place='infix')": ("gpt2", "llama"),
    "Prefix(length=3, mlp=5, dropout=0.2, place='infix')": ("gpt2",),
    "UniPELT(LoRA(r=2) + Prefix(length=3, place='infix'))": ("llama",),
    "Prefix(length=3, ids=(7, 8))": ("bert", "gpt2", "llama", "t5"),
    "UniPELT(Prefix(length=3, ids=(7, 8)))": ("gpt2",),
    "UniPELT(LoRA(r=2) + Prefix(length=3, dropout=0.2))": ("bert", "gpt2"),
    "Prompt(length=3, init='uniform')": ("gpt2",),
    "Prompt(length=3, init='normal')": ("bert",),
    "Prompt(length=3, init='ids', ids=(7, (8, 9)))": ("t5",),
    "IDPG(length=2, hidden=3) + LoRA(r=2)": ("gpt2", "t5"),
    "PTuning(length=3, encoder='mlp')": ("gpt2", "t5"),
    "PTuning(length=3, hidden=5, layers=1)": ("bert",),
    # Groups that roll, positions brought together, LoRA and the groups alone.
    "LongLoRA(r=2, groups=2, wrap='roll', norms=False)": ("bert", "llama", "t5"),
    "LongLoRA(r=2, factor=4.0, embeddings=False)": ("llama",),
    "BitFit(missing='add')": ("llama", "t5"),
    "BitFit(sites='*.{attn.q,ffn.in}')": ("bert", "gpt2"),
    "Unfreeze(layers=1)": ("t5",),
    "Embeddings(head=False)": ("bert", "llama"),
    # The unified view: what merges, what gates, what reads the output.
    "Unified(r=3, form='linear', composition='learned', sites='*.attn.{q,v}')": ("bert", "gpt2"),
    "Unified(r=3, form='softmax', composition='gated', sites='*.attn')": ("llama", "t5"),
    "Unified(r=3, form='gelu', insertion='sequential', composition='add', sites=('*.ffn', '*.attn.o'))": ("bert",),
    # Gates before single methods; a prefix through its MLP.
    "UniPELT(LoRA(r=2) + Prefix(length=3, mlp=4))": ("bert", "llama", "t5"),
    "UniPELT(Bottleneck(size=3) + BitFit(missing='add'))": ("gpt2", "t5"),
    "MAM(length=3, size=4, mlp=5)": ("bert", "t5"),
    # Unions: everything with a prompt, the same method twice.
    "Prefix(length=3) + Bottleneck(size=4, form='parallel')": ("bert", "gpt2"),
    "Prompt(length=4) + LoRA(r=2) + BitFit(missing='add')": ("llama",),
    "Prefix(length=2) + LoRA(r=2) + Prefix(length=3, mlp=4) + LoRA(r=3, sites='*.{q,o}')": ("t5",),
}


@cache
def refusal(text: str, kind: str) -> str | None:
    return applies(parse(text), kind)


@cache
def defaults() -> list[str]:
    """Every registered name with its defaults; names for the same method once."""
    return list({repr(maker()): f"{name}()" for name, maker in registry().items()}.values())


WANTED = [(text, kind) for text in defaults() for kind in MODELS]
WANTED += [(text, kind) for text, kinds in VARIANTS.items() for kind in kinds]
CASES = [(text, kind) for text, kind in WANTED if refusal(text, kind) is None]
TWICE = {"LoRA()", "Bottleneck()", "Prefix()", "Prompt()", "BitFit()", "Full()"}
"""Methods that the quick suite tries on two of the four models; the others each on one, in turn."""
FURTHER = {"LoHa", "LoKr", "OFT", "BOFT", "FourierFT", "VBLoRA", "LNTuning"}
"""Methods of which only the slow suite tries variants."""


def is_quick(text: str, kind: str) -> bool:
    """Whether the quick suite tries a configuration on a model; the slow one tries all."""
    if text in VARIANTS:
        return kind == VARIANTS[text][0] and text.partition("(")[0] not in FURTHER
    possible = [other for other in MODELS if refusal(text, other) is None]
    first = defaults().index(text)
    return kind in {possible[(first + i) % len(possible)] for i in range(2 if text in TWICE else 1)}


REFUSED = [(text, kind) for text, kind in WANTED if refusal(text, kind) is not None]


def is_quick_law(law: str, text: str) -> bool:
    """Whether the quick suite holds a configuration to a law: variants to every other one, in turn."""
    return text not in VARIANTS or (list(LAWS).index(law) + list(VARIANTS).index(text)) % 2 == 0


@pytest.mark.parametrize(
    ("law", "text", "kind"),
    [
        pytest.param(law, *case, marks=[] if is_quick(*case) and is_quick_law(law, case[0]) else pytest.mark.slow)
        for law in LAWS
        for case in CASES
    ],
)
def test_law(law, text, kind):
    demand(law, parse(text), kind)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch asks; computed weights
@pytest.mark.parametrize(("text", "kind"), [(text, kind) for text, kind in CASES if text in defaults()])
@pytest.mark.parametrize("law", SLOW_LAWS)
def test_slow_law(law, text, kind):
    demand(law, parse(text), kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(CONFIGS) - set(MODELS)))
@pytest.mark.parametrize("text", defaults())
def test_other_families_keep_the_laws(text, kind):
    if refusal(text, kind) is None:
        check_method(parse(text), models=[kind])


@pytest.mark.parametrize(("text", "kind"), REFUSED)
def test_a_refusal_says_why_and_leaves_the_model_alone(text, kind):
    model, batch = tiny(kind), inputs(kind)
    with torch.no_grad():
        before = model(**batch)[0]
    host = Host(model)
    with pytest.raises(DeltatuneError) as refused:
        host.attach("a", parse(text))
    message = str(refused.value)
    assert type(model).__name__ in message, "the refusal must name the model"
    assert len(message) > 40, f"this is no explanation: {message}"
    assert not host.adapters
    with torch.no_grad():
        assert torch.equal(model(**batch)[0], before)
    host.attach("a", parse("LoRA()"))  # the name is still free


@pytest.mark.parametrize("text", [*defaults(), *VARIANTS])
def test_every_method_applies_to_some_model(text):
    assert any((text, kind) in CASES for kind in MODELS), f"{text} was tried on none of {MODELS}"


def test_bitfit_is_refused_where_there_are_no_biases():
    assert {("BitFit()", "llama"), ("BitFit()", "t5")} <= set(REFUSED)
    assert "missing='add'" in refusal("BitFit()", "llama")
