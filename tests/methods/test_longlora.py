"""LongLoRA: attention in shifted groups as in the paper's two codes, positions brought together, full at inference."""

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from deltatune import DeltatuneError, Host, LongLoRA
from deltatune.core.attention_call import AttentionCall
from deltatune.methods.low_rank.longlora import ShiftedSparse
from deltatune.testing.fixtures import attach
from support import golden_cases, models


def plain(module, q, k, v, mask, **options):
    """Attention in the open: (B, T, H, K)."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(-1).nan_to_num() @ v).transpose(1, 2), None


class Causal(torch.nn.Module):
    is_causal = True


def causal(T):
    return torch.ones(1, 1, T, T, dtype=torch.bool).tril()


def sparse(q, k, v, mask, groups, wrap="none", module=None):
    delta = ShiftedSparse(groups, wrap, 1.0).train()
    return delta(AttentionCall(plain, module or Causal(), q, k, v, mask, {}))[0]


def random(H, T, K=4, shared=None, B=2):
    generator = torch.Generator().manual_seed(0)
    shapes = (H, shared or H, shared or H)
    return [torch.randn(B, heads, T, K, generator=generator) for heads in shapes]


@pytest.mark.parametrize("wrap", ["none", "roll"])
def test_the_papers_codes(wrap):
    case = golden_cases.tensors("s2_attention")
    found = sparse(case["input.q"], case["input.k"], case["input.v"], causal(16), 4, wrap)
    expected = case["output" if wrap == "none" else "output.wrap"]
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-5, atol=1e-5)


def test_one_group_is_full_attention_in_the_half_that_is_not_shifted():
    q, k, v = random(4, 8)
    found = sparse(q, k, v, causal(8), 1)
    full = plain(None, q, k, v, causal(8))[0]
    torch.testing.assert_close(found[:, :, :2], full[:, :, :2])
    assert not torch.allclose(found[:, :, 2:], full[:, :, 2:], atol=1e-3)


@pytest.mark.parametrize(("H", "shared"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("T", [16, 13])
def test_groups_are_blocks_of_the_mask(H, shared, T):
    """Any length, any number of shared key heads: the same as full attention with blocks cut out of the mask."""
    q, k, v = random(H, T, shared=shared)
    G = 4
    place = torch.arange(T)
    wanted = []
    for shift in (0, G // 2):
        group = (place + (G - shift) % G) // G if shift else place // G
        mask = causal(T) & (group[:, None] == group[None])
        wanted.append(plain(None, q, k, v, mask)[0])
    expected = torch.cat([wanted[0][:, :, : H // 2], wanted[1][:, :, H // 2 :]], 2)
    torch.testing.assert_close(sparse(q, k, v, causal(T), 4), expected, rtol=1e-5, atol=1e-5)


def test_no_token_sees_its_future_and_the_rolled_ones_do():
    q, k, v = random(4, 16)
    later = [t.clone() for t in (q, k, v)]
    for t in later:
        t[:, :, 12:] += 1.0
    for wrap, same in (("none", True), ("roll", False)):
        before, after = (sparse(*each, causal(16), 4, wrap)[:, :12] for each in ((q, k, v), later))
        assert torch.allclose(before, after, atol=1e-6) == same


def test_padding_is_not_attended():
    q, k, v = random(4, 16)
    mask = causal(16).repeat(2, 1, 1, 1)
    mask[1, :, :, 11:] = False
    changed = [t.clone() for t in (k, v)]
    for t in changed:
        t[1, :, 11:] += 1.0
    torch.testing.assert_close(sparse(q, *changed, mask, 4)[1, :11], sparse(q, k, v, mask, 4)[1, :11])


@pytest.mark.parametrize("wrap", ["none", "roll"])
def test_a_whole_model_in_training_is_the_golden_one(wrap):
    """`llama_s2`: plain transformers with a mask for each head."""
    case = golden_cases.tensors("llama_s2")
    batch = {"input_ids": case["input.ids"], "attention_mask": case["input.mask"]}
    host = Host(golden_cases.base("llama"))
    host.attach("a", LongLoRA(groups=4, wrap=wrap))
    host.model.train()
    with torch.no_grad():
        found = host.model(**batch)[0]
        host.model.eval()
        full = host.model(**batch)[0]
        host.use(None)
        bare = host.model(**batch)[0]
    torch.testing.assert_close(found, case["output" if wrap == "none" else "output.wrap"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(full, bare)
    assert not torch.allclose(found, bare, atol=1e-3)


@torch.no_grad()
def test_positions_brought_together_are_transformers_linear_scaling():
    config = LlamaConfig(**{**models.CONFIGS["llama"], "vocab_size": models.VOCABULARY})
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    scaled_config = LlamaConfig(**{**models.CONFIGS["llama"], "vocab_size": models.VOCABULARY})
    scaled_config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    scaled = LlamaForCausalLM(scaled_config).eval()
    scaled.load_state_dict(model.state_dict())
    host = Host(model)
    host.attach("a", LongLoRA(factor=4.0))
    ids = torch.arange(5, 45).view(2, 20)
    torch.testing.assert_close(model(input_ids=ids).logits, scaled(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    options = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 0}
    assert torch.equal(host.generate(input_ids=ids, **options), scaled.generate(input_ids=ids, **options))
    host.use(["a", None])
    mixed = model(input_ids=ids).logits
    torch.testing.assert_close(mixed[0], scaled(input_ids=ids).logits[0], rtol=1e-4, atol=1e-4)
    host.use(None)
    torch.testing.assert_close(mixed[1], model(input_ids=ids).logits[1], rtol=1e-4, atol=1e-4)


def test_positions_of_a_table_are_refused():
    with pytest.raises(DeltatuneError, match="this GPT2Model has none; leave factor at 1"):
        Host(models.tiny("gpt2")).attach("a", LongLoRA(factor=2.0))


def test_a_mask_with_one_row_for_all_queries():
    q, k, v = random(4, 16)
    keys = torch.arange(16) < torch.tensor([16, 11])[:, None]
    whole = keys[:, None, None].expand(-1, -1, 16, -1)
    found = sparse(q, k, v, keys[:, None, None], 4)
    torch.testing.assert_close(found, sparse(q, k, v, whole, 4))


def blockwise(q, k, v, G, added):
    """Full attention with what is added to its scores, and all but the groups cut out."""
    place, halves = torch.arange(q.shape[2]), []
    for shift in (0, G // 2):
        group = (place + (G - shift) % G) // G
        halves.append(plain(None, q, k, v, added.masked_fill(group[:, None] != group[None], -torch.inf))[0])
    half = q.shape[1] // 2
    return torch.cat([halves[0][:, :, :half], halves[1][:, :, half:]], 2)


class TwoWays(torch.nn.Module):
    is_causal = False


@pytest.mark.parametrize("T", [16, 13])
@pytest.mark.parametrize("heads", [1, 4])
def test_a_bias_within_the_mask_stays(heads, T):
    """Swin hands its learned bias in as the mask."""
    q, k, v = random(4, T)
    bias = torch.randn(1, heads, T, T, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = sparse(q, k, v, bias, 4, module=TwoWays())
    torch.testing.assert_close(found, blockwise(q, k, v, 4, bias), rtol=1e-5, atol=1e-5)
    found.sum().backward()
    assert bias.grad is not None


@pytest.mark.parametrize("T", [16, 13])
def test_a_call_says_whether_it_looks_back_only(T):
    """Some encoders of images pass it, against their module."""
    q, k, v = random(4, T)
    seen = []

    def run(module, q, k, v, mask, is_causal=None):
        seen.append(mask)
        return plain(module, q, k, v, mask)

    call = AttentionCall(run, Causal(), q, k, v, None, {"is_causal": False})
    found = ShiftedSparse(4, "none", 1.0).train()(call)[0]
    torch.testing.assert_close(found, blockwise(q, k, v, 4, torch.zeros(1, 1, T, T)), rtol=1e-5, atol=1e-5)
    assert seen


def test_one_head_has_no_half():
    with pytest.raises(DeltatuneError, match="attention here has one head"):
        sparse(*random(1, 16), causal(16), 4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", [slice(0, 11), slice(5, 16)], ids=["left", "right"])
@pytest.mark.parametrize("wrap", ["none", "roll"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_groups_of_padding_alone_leave_all_finite(kind, wrap, side, attention):
    model = models.tiny(kind, dropout=False)
    model.set_attn_implementation(attention)
    host = Host(model)
    attach(host, "a", LongLoRA(r=2, wrap=wrap))
    model.train()
    ids = torch.arange(5, 37).view(2, 16)
    mask = torch.ones_like(ids)
    mask[1, side] = 0
    out = []
    for read in (ids, ids.masked_fill(mask == 0, 7)):
        batch = {"input_ids": read, "attention_mask": mask}
        if kind == "t5":
            batch |= {"decoder_input_ids": read, "decoder_attention_mask": mask}
        out.append(model(**batch)[0])
    (out[0] * mask[..., None]).square().sum().backward()
    grads = [p.grad for _, p in host.trainable("a") if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)
    torch.testing.assert_close(out[0][mask.bool()], out[1][mask.bool()])


def test_a_tied_embedding_is_not_merged():
    host = Host(models.tiny("gpt2", "lm"))
    attach(host, "a", LongLoRA())
    with pytest.raises(DeltatuneError, match="tied"):
        host.merge_("a")


def test_trained_embeddings_and_groups_learn_together():
    host = Host(models.tiny("llama", "lm", dropout=False))
    host.attach("a", LongLoRA(r=2))
    ids = torch.arange(5, 37).view(2, 16)
    host.model.train()
    optimizer = torch.optim.AdamW([p for _, p in host.trainable("a")], lr=1e-2)
    losses = []
    for _ in range(12):
        logits = host.model(input_ids=ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("T", [16, 13, 7])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_without_a_mask_it_is_the_same(kind, T):
    """An unpadded causal text needs no mask; a written-out one gives the same."""
    host = Host(models.tiny(kind, dropout=False))
    attach(host, "a", LongLoRA(r=2))
    host.model.train()
    ids = torch.arange(5, 5 + T)[None].repeat(2, 1)
    seen = []
    host.model.register_forward_pre_hook(lambda *_: seen.clear())
    own = F.scaled_dot_product_attention

    def spy(*args, **options):
        seen.append(options.get("attn_mask") is None)
        return own(*args, **options)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", spy)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        found = host.model(input_ids=ids)[0]
        assert seen
        assert all(seen)
        both = torch.cat([ids, ids])
        mask = torch.ones_like(both)
        mask[2:, -1] = 0
        masked = host.model(input_ids=both, attention_mask=mask)[0]
    torch.testing.assert_close(masked[:2], found, rtol=1e-4, atol=1e-5)
