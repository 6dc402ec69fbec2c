"""What users call to save a model with adapters on it writes the adapters: transformers, its Trainer, neighbours.

Each folder is loaded again by the call that a user would make, and gives the same outputs or an error in words.
"""

import copy
import json
import shutil

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments

import deltatune
from deltatune import LoRA
from deltatune.core.errors import DeltatuneError
from deltatune.store.run_folder import find_adapter
from support import models

TEXTS = [f"the cat sat on the mat and the dog {word} it" for word in ("saw", "bit", "ate", "had")] * 4
METHODS = [
    "LoRA(r=2)",
    pytest.param("Bottleneck(size=4)", marks=pytest.mark.slow),
    pytest.param("Prefix(length=3)", marks=pytest.mark.slow),
]


@pytest.fixture
def base(tmp_path):
    """A folder with a tiny language model, as a user has it."""
    models.tiny("llama", "lm").save_pretrained(tmp_path / "base")
    models.tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def hosted(base, method="LoRA(r=2)", name="mine"):
    host = deltatune.Host(AutoModelForCausalLM.from_pretrained(base))
    host.attach(name, deltatune.parse(method))
    randomize_(host, name)
    return host


def randomize_(host, name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in host.trainable(name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@torch.no_grad()
def logits(model):
    return model.eval()(**models.inputs("llama")).logits


def reload(base, folder, **options):
    host = deltatune.Host(AutoModelForCausalLM.from_pretrained(base))
    host.load(folder, **options)
    return host


def arguments(folder, cls=TrainingArguments, **more):
    return cls(
        str(folder),
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **{"max_steps": 4, "save_steps": 2, **more},
    )


def rows():
    encoded = [models.tiny_tokenizer()(text) for text in TEXTS]
    return [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in encoded]


def train(host, folder, resume=None, **more):
    trainer = Trainer(host.model, arguments(folder, **more), train_dataset=rows())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# ---- save_pretrained


@pytest.mark.parametrize("method", METHODS)
def test_save_pretrained_writes_the_adapter_and_not_the_base(method, base, tmp_path):
    host = hosted(base, method)
    host.model.save_pretrained(tmp_path / "out")
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert size < 0.6 * (base / "model.safetensors").stat().st_size
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        (other,) = [key for key in list(file.keys()) if not key.startswith("deltatune.mine.")]
        assert file.get_tensor(other).numel() == 0
    again = reload(base, tmp_path / "out")
    assert list(again.adapters) == ["mine"]
    assert torch.equal(logits(again.model), logits(host.model))


@pytest.mark.parametrize("method", METHODS)
def test_from_pretrained_gives_the_adapted_model_or_an_error(method, base, tmp_path):
    host = hosted(base, method)
    host.model.save_pretrained(tmp_path / "out")
    if method == "LoRA(r=2)":  # which PEFT holds, and which transformers loads through it
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        torch.testing.assert_close(logits(again), logits(host.model))
        loading = pytest.raises(ValueError, match=r"Target modules .* not found")  # of another class of models
    else:
        loading = pytest.raises(ValueError, match="Unrecognized model")
        with pytest.raises(ValueError, match="Unrecognized model"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with loading:
        AutoModel.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    "method",
    [
        "DoRA(r=2)",
        *(
            pytest.param(method, marks=pytest.mark.slow)
            for method in ("RsLoRA(r=2)", "PiSSA(r=2)", "VeRA(r=3)", "IA3()", "LoRA(r=2, sites=('embed', 'lm_head'))")
        ),
    ],
)
def test_from_pretrained_never_gives_another_model(method, base, tmp_path):
    """What transformers loads through PEFT computes the same, for every method of PEFT's; else it is refused."""
    host = hosted(base, method)
    host.model.save_pretrained(tmp_path / "out")
    if method == "VeRA(r=3)":
        with pytest.raises(ValueError, match=r"does not support PeftType\.VERA"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    else:
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        torch.testing.assert_close(logits(again), logits(host.model), rtol=1e-4, atol=1e-4)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out" / "mine")
    torch.testing.assert_close(logits(theirs), logits(host.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["LoRA(r=2)", pytest.param("Prefix(length=3)", marks=pytest.mark.slow)])
def test_the_folder_is_no_model_with_a_config_beside_it_either(method, base, tmp_path):
    """transformers would make up the weights that are not in it."""
    host = hosted(base, method)
    host.model.save_pretrained(tmp_path / "out")
    host.model.config.save_pretrained(tmp_path / "out")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(base)
    state = load_file(tmp_path / "out" / "model.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        plain.load_state_dict(state, strict=False)
    twin = hosted(base, method)
    randomize_(twin, "mine", 3)
    twin.model.load_state_dict(state)
    assert torch.equal(logits(twin.model), logits(host.model))


def test_a_model_around_the_hosted_one_is_not_saved_without_the_adapters(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    host = deltatune.Host(model.model)
    host.attach("mine", LoRA(r=2))
    for save in (model.save_pretrained, Trainer(model, arguments(tmp_path / "run")).save_model):
        with pytest.raises(
            DeltatuneError, match=r"LlamaForCausalLM\.save_pretrained .* adapters \(mine\) .* part model"
        ):
            save(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
    model.model.save_pretrained(tmp_path / "body")  # the hosted part itself writes them
    assert (tmp_path / "body" / "mine" / "adapter.json").exists()
    host.detach("mine")
    model.save_pretrained(tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_save_pretrained_of_the_class_is_refused(base, tmp_path):
    host = hosted(base)
    with pytest.raises(DeltatuneError, match=r"call it on the model, model\.save_pretrained\(folder\)"):
        type(host.model).save_pretrained(host.model, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(target_modules=["q_proj"]),
        pytest.param(peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), marks=pytest.mark.slow),
    ],
)
def test_pefts_adapters_on_a_hosted_model_are_refused(config, base, tmp_path):
    host = hosted(base)
    theirs = peft.get_peft_model(host.model, config)
    with pytest.raises(DeltatuneError, match=r"PeftModel\w*\.save_pretrained would write"):
        theirs.save_pretrained(tmp_path / "out")
    if config.peft_type == "LORA":
        with pytest.raises(DeltatuneError, match="PEFT has put adapters of its own"):
            logits(theirs)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_transformers_own_peft_adapters_on_a_hosted_model_are_refused(base, tmp_path):
    host = hosted(base)
    host.model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    for call in (lambda: logits(host.model), lambda: host.model.save_pretrained(tmp_path / "out")):
        with pytest.raises(DeltatuneError, match="PEFT has put adapters of its own"):
            call()


@pytest.mark.slow
def test_parts_of_the_model_that_could_be_saved_alone_write_the_adapter_too(base, tmp_path):
    host = hosted(base)
    host.model.model.save_pretrained(tmp_path / "body")
    assert torch.equal(logits(reload(base, tmp_path / "body").model), logits(host.model))


def test_the_base_is_written_where_it_is_asked_for(base, tmp_path):
    host = hosted(base)
    host.model.save_pretrained(tmp_path / "out", base=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "base_model")
    with host.using(None):
        assert torch.equal(logits(plain), logits(host.model))
    assert torch.equal(logits(reload(tmp_path / "out" / "base_model", tmp_path / "out").model), logits(host.model))


def test_a_quantised_base_is_not_written_as_a_plain_one(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    deltatune.quantize_(model, "int8")
    host = deltatune.Host(model)
    host.attach("mine", LoRA(r=2))
    with pytest.raises(DeltatuneError, match=r"the base is stored in int8.*save_quantized\(model, folder\)"):
        model.save_pretrained(tmp_path / "out", base=True)
    assert not (tmp_path / "out").exists()
    model.save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="Unrecognized model"):  # PEFT would take the plain base
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pytest.raises(DeltatuneError, match="without quantisation"):
        reload(base, tmp_path / "out")


@pytest.mark.slow
def test_several_adapters_are_chosen_by_name(base, tmp_path):
    host = hosted(base)
    host.attach("other", LoRA(r=3))
    randomize_(host, "other", 1)
    host.model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_config.json").exists(), "from_pretrained would take one of the two"
    with pytest.raises(DeltatuneError, match="holds the adapters mine, other; choose one"):
        reload(base, tmp_path / "out")
    with pytest.raises(DeltatuneError, match="no adapter 'othr', did you mean 'other'"):
        reload(base, tmp_path / "out", name="othr")
    again = reload(base, tmp_path / "out", name="other")
    host.use("other")
    assert torch.equal(logits(again.model), logits(host.model))


def test_a_second_save_replaces_the_first(base, tmp_path):
    host = hosted(base)
    host.model.save_pretrained(tmp_path / "out")
    randomize_(host, "mine", 2)
    host.attach("other", LoRA(r=3))
    host.model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(reload(base, tmp_path / "out", name="mine").model), logits(host.model))
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_folder_with_a_model_is_not_made_a_silent_base(base, tmp_path):
    host = hosted(base)
    before = {path.name: path.stat().st_mtime_ns for path in base.iterdir()}
    with pytest.raises(DeltatuneError, match=r"holds a model \(config.json, model.safetensors\)"):
        host.model.save_pretrained(base)
    assert {path.name: path.stat().st_mtime_ns for path in base.iterdir()} == before


def test_the_file_that_a_trainer_copies_is_no_model(base, tmp_path):
    host = hosted(base)
    host.model.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "checkpoint" / "model.safetensors", tmp_path / "run")
    host.model.save_pretrained(tmp_path / "run")
    assert torch.equal(logits(reload(base, tmp_path / "run").model), logits(host.model))


def test_an_adapters_folder_is_left_alone(base, tmp_path):
    host = hosted(base)
    host.save("mine", tmp_path / "out")
    with pytest.raises(DeltatuneError, match="holds an adapter"):
        host.model.save_pretrained(tmp_path / "out")


def test_other_processes_write_nothing(base, tmp_path):
    hosted(base).model.save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


def test_values_of_a_state_dict_are_those_that_are_written(base, tmp_path):
    """As a trainer gives averaged values."""
    host = hosted(base)
    before = logits(host.model)
    state = {name: tensor * 0.5 for name, tensor in host.model.state_dict().items() if name.startswith("deltatune.")}
    host.model.save_pretrained(tmp_path / "out", state_dict=state)
    assert torch.equal(logits(host.model), before)
    again = reload(base, tmp_path / "out")
    assert all(torch.equal(again.model.state_dict()[name], tensor) for name, tensor in state.items())


def test_names_of_wrapped_models_are_understood(base, tmp_path):
    """As of torch.compile and of data-parallel wrappers, which trainers hand over as they are."""
    host = hosted(base)
    for prefix in ("_orig_mod.", "module."):
        state = {f"{prefix}{name}": tensor * 0.5 for name, tensor in host.model.state_dict().items()}
        host.model.save_pretrained(tmp_path / "out", state_dict=state)
        again = reload(base, tmp_path / "out").model.state_dict()
        assert all(torch.equal(again[name], state[prefix + name]) for name in again if name.startswith("deltatune."))


def test_a_command_takes_the_only_adapter_of_a_folder(base, tmp_path):
    host = hosted(base)
    host.model.save_pretrained(tmp_path / "out")
    assert find_adapter(tmp_path / "out") == tmp_path / "out" / "mine"
    host.attach("other", LoRA(r=3))
    host.model.save_pretrained(tmp_path / "out")
    with pytest.raises(DeltatuneError, match=r"holds several adapters; name one: .*mine, .*other"):
        find_adapter(tmp_path / "out")


def test_a_state_dict_without_the_adapter_is_refused(base, tmp_path):
    host = hosted(base)
    plain = AutoModelForCausalLM.from_pretrained(base).state_dict()
    with pytest.raises(DeltatuneError, match="lacks tensors of the adapters"):
        host.model.save_pretrained(tmp_path / "out", state_dict=plain)
    assert not (tmp_path / "out").exists()


def test_while_merged_the_call_is_refused_with_the_two_ways(base, tmp_path):
    host = hosted(base)
    host.merge_("mine")
    with pytest.raises(DeltatuneError, match=r"merge_and_unload\(\).*unmerge_\('mine'\)"):
        host.model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_banked_adapters_alone_are_refused(base, tmp_path):
    host = hosted(base)
    tensors = host.adapters["mine"].tensors()
    host.detach("mine")
    host.bank(4).put("mine", LoRA(r=2), tensors)
    host.use("mine")
    with pytest.raises(DeltatuneError, match="are in the bank"):
        host.model.save_pretrained(tmp_path / "out")


def test_after_the_last_detach_the_model_is_as_it_was(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    host = deltatune.Host(model)
    untouched = {name: set(vars(module)) for name, module in model.named_modules()}
    host.attach("a", LoRA(r=2))
    host.attach("b", LoRA(r=2))
    host.detach("a")
    assert "save_pretrained" in vars(model)
    host.detach("b")
    assert {name: set(vars(module)) for name, module in model.named_modules()} == untouched == before
    assert not model._load_state_dict_post_hooks
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_a_copy_of_the_model_saves_its_own_adapters(base, tmp_path):
    host = hosted(base)
    twin = copy.deepcopy(host.model)
    with torch.no_grad():
        for parameter in twin.deltatune.parameters():
            parameter.zero_()
    twin.save_pretrained(tmp_path / "twin")
    again = reload(base, tmp_path / "twin")
    assert not any(parameter.any() for _, parameter in again.trainable("mine"))


def test_damaged_folders_are_named(base, tmp_path):
    host = hosted(base)
    host.model.save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "mine" / "adapter.safetensors").write_bytes(b"x")
    with pytest.raises(DeltatuneError, match=r"adapter\.safetensors was changed or damaged"):
        reload(base, tmp_path / "out")
    for names in ([], ["../base"], "mine", [".."]):
        (tmp_path / "out" / "hosted.json").write_text(json.dumps({"adapters": names}))
        with pytest.raises(DeltatuneError, match=r"hosted\.json is damaged"):
            reload(base, tmp_path / "out")


# ---- state dicts


def test_a_state_dict_goes_into_no_model_without_its_adapter(base):
    host = hosted(base)
    state = host.model.state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*deltatune\.mine"):
        AutoModelForCausalLM.from_pretrained(base).load_state_dict(state)
    other = hosted(base, name="other")
    with pytest.raises(DeltatuneError, match=r"tensors of 'mine' that no adapter here takes; attached: other"):
        other.model.load_state_dict(state, strict=False)
    twin = hosted(base)
    randomize_(twin, "mine", 3)
    twin.model.load_state_dict(state)
    assert torch.equal(logits(twin.model), logits(host.model))


def test_the_adapters_tensors_alone_load_into_their_host(base):
    host, twin = hosted(base), hosted(base)
    randomize_(twin, "mine", 3)
    state = {key: tensor for key, tensor in host.model.state_dict().items() if key.startswith("deltatune.")}
    assert twin.model.load_state_dict(state) == ([], [])
    assert torch.equal(logits(twin.model), logits(host.model))
    del state[next(iter(state))]
    with pytest.raises(RuntimeError, match="Missing key"):
        twin.model.load_state_dict(state)


def test_the_state_of_a_merged_model_does_not_make_the_adapter_act_twice(base):
    host = hosted(base)
    host.merge_("mine")
    state = host.model.state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        hosted(base).model.load_state_dict(state)
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.load_state_dict(state)
    assert torch.equal(logits(plain), logits(host.model))
    host.model.load_state_dict(state)
    host.unmerge_("mine")
    assert any("deltatune.mine." in key for key in host.model.state_dict())


# ---- transformers' Trainer


@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_of_a_trainer_hold_the_adapter_and_resume(method, base, tmp_path):
    host = hosted(base, method)
    train(host, tmp_path / "run")
    for step in (2, 4):
        files = {path.name for path in (tmp_path / "run" / f"checkpoint-{step}").iterdir()}
        assert {"mine", "hosted.json", "optimizer.pt", "trainer_state.json"} <= files
        assert "config.json" not in files
    end = reload(base, tmp_path / "run" / "checkpoint-4")
    assert torch.equal(logits(end.model), logits(host.model))
    resumed = hosted(base, method)
    train(resumed, tmp_path / "again", resume=str(tmp_path / "run" / "checkpoint-2"))
    torch.testing.assert_close(logits(resumed.model), logits(host.model))


@pytest.mark.slow
def test_save_model_of_a_trainer(base, tmp_path):
    host = hosted(base)
    trainer = train(host, tmp_path / "run", save_strategy="no", max_steps=1)
    trainer.save_model(tmp_path / "final")
    assert torch.equal(logits(reload(base, tmp_path / "final").model), logits(host.model))
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "final")), logits(host.model), msg="through PEFT"
    )


@pytest.mark.slow
def test_a_trainer_does_not_resume_onto_another_adapter(base, tmp_path):
    train(hosted(base), tmp_path / "run", max_steps=2)
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(DeltatuneError, match="no adapter here takes; attached: other"):
        train(hosted(base, name="other"), tmp_path / "again", resume=checkpoint)
    with pytest.raises(RuntimeError, match="size mismatch"):
        train(hosted(base, "LoRA(r=3)"), tmp_path / "again", resume=checkpoint)


@pytest.mark.slow
def test_a_trainer_takes_back_the_best_checkpoint(base, tmp_path):
    host = hosted(base)
    options = arguments(
        tmp_path / "run",
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    trainer = Trainer(host.model, options, train_dataset=rows(), eval_dataset=rows()[:4])
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-1"), "the largest loss is the first"
    assert torch.equal(logits(reload(base, best).model), logits(host.model))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL and what it imports warn of their own versions
def test_sft_trainer_of_trl(base, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    host = hosted(base)

    def trainer(host, folder):
        return trl.SFTTrainer(
            host.model,
            args=arguments(folder, trl.SFTConfig, bf16=False, max_length=32),
            train_dataset=datasets.Dataset.from_dict({"text": TEXTS}),
            processing_class=tokenizer,
        )

    first = trainer(host, tmp_path / "run")
    first.train()
    first.save_model(tmp_path / "final")
    for folder in (tmp_path / "final", tmp_path / "run" / "checkpoint-4"):
        assert torch.equal(logits(reload(base, folder).model), logits(host.model))
    resumed = hosted(base)
    trainer(resumed, tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    torch.testing.assert_close(logits(resumed.model), logits(host.model))


# ---- accelerate


def test_accelerate_keeps_the_adapter_in_its_state(base, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    host = hosted(base)
    accelerator.prepare(host.model)
    accelerator.save_state(tmp_path / "state")
    wanted = logits(host.model)
    randomize_(host, "mine", 4)
    accelerator.load_state(tmp_path / "state")
    assert torch.equal(logits(host.model), wanted)
    with pytest.raises(ValueError, match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "state")
    host.detach("mine")
    with pytest.raises(RuntimeError, match=r"Unexpected key.*deltatune\.mine"):
        accelerator.load_state(tmp_path / "state")


def test_accelerate_with_the_hosts_hooks_writes_the_adapter_alone(base, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    host = hosted(base)
    accelerator.prepare(host.model)
    host.register_with(accelerator)
    accelerator.save_state(tmp_path / "state")
    wanted = logits(host.model)
    assert (tmp_path / "state" / "mine" / "adapter.json").is_file()
    size = sum(path.stat().st_size for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert size < (base / "model.safetensors").stat().st_size
    randomize_(host, "mine", 4)
    accelerator.load_state(tmp_path / "state")
    assert torch.equal(logits(host.model), wanted)
    assert torch.equal(logits(reload(base, tmp_path / "state").model), wanted)
    accelerator.save_model(host.model, tmp_path / "model")
    assert torch.equal(logits(reload(base, tmp_path / "model").model), wanted)
    accelerator.save_model(torch.nn.Linear(2, 2), tmp_path / "other")
    assert (tmp_path / "other" / "model.safetensors").is_file()


@pytest.mark.slow
def test_save_model_of_accelerate_has_no_config_and_all_tensors(base, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    host = hosted(base)
    accelerator.save_model(host.model, tmp_path / "out")
    with pytest.raises(ValueError, match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    twin = hosted(base)
    randomize_(twin, "mine", 4)
    accelerate.load_checkpoint_in_model(twin.model, tmp_path / "out")
    assert torch.equal(logits(twin.model), logits(host.model))


@pytest.mark.slow
def test_the_file_of_adapters_is_no_checkpoint_for_accelerate(base, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    hosted(base).model.save_pretrained(tmp_path / "out")
    with pytest.raises(OSError, match="metadata"):
        accelerate.load_checkpoint_in_model(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")


# ---- sentence-transformers


@pytest.fixture
def sentences(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    models.tiny("bert").save_pretrained(tmp_path / "bert")
    models.tiny_tokenizer().save_pretrained(tmp_path / "bert")
    return library.SentenceTransformer(str(tmp_path / "bert"), device="cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_sentence_transformers_save(method, sentences, tmp_path):
    from sentence_transformers import SentenceTransformer

    plain = sentences.encode(TEXTS[:2])
    host = deltatune.Host(sentences[0].auto_model)
    host.attach("mine", deltatune.parse(method))
    randomize_(host, "mine")
    wanted = sentences.encode(TEXTS[:2])
    assert abs(wanted - plain).max() > 1e-3
    sentences.save(str(tmp_path / "out"))
    again = SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    deltatune.Host(again[0].auto_model).load(tmp_path / "out")
    assert (again.encode(TEXTS[:2]) == wanted).all()
    try:
        itself = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    except (OSError, ValueError):
        assert method != "LoRA(r=2)", "PEFT holds it"
    else:
        assert abs(itself.encode(TEXTS[:2]) - wanted).max() < 1e-5


@pytest.mark.slow
def test_a_host_on_the_sentence_transformer_itself_is_refused(sentences):
    """Its forward calls each of its children in turn, the adapters among them."""
    with pytest.raises(DeltatuneError, match=r"Sequential.*take its part '0\.model' \(BertModel\)"):
        deltatune.Host(sentences)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_sentence_transformers(sentences, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    datasets = pytest.importorskip("datasets")
    host = deltatune.Host(sentences[0].auto_model)
    host.attach("mine", LoRA(r=2))
    pairs = datasets.Dataset.from_dict({"anchor": TEXTS, "positive": TEXTS[::-1]})
    options = arguments(tmp_path / "run", library.SentenceTransformerTrainingArguments)
    from sentence_transformers.sentence_transformer import losses

    loss = losses.MultipleNegativesRankingLoss(sentences)
    trainer = library.SentenceTransformerTrainer(sentences, options, train_dataset=pairs, loss=loss)
    trainer.train()
    wanted = sentences.encode(TEXTS[:2])
    again = library.SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    deltatune.Host(again[0].auto_model).load(tmp_path / "run" / "checkpoint-4")
    assert (again.encode(TEXTS[:2]) == wanted).all()
    with pytest.raises(deltatune.DeltatuneError, match=r"can neither resume.*Host\(model\[0\].auto_model\).load\("):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
