"""The sections of a model card, line by line; what was not measured is omitted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from pretraining.runs.history import RunHistory, format_significant
from pretraining.runs.tracking.metrics_file import EVALUATIONS, Record
from pretraining.system.escapes import markdown_code, markdown_text

MAX_FILES = 20  # named as sources; manifest.json has them all
TOKENS_PER_PARAMETER = 20  # about what gives the lowest loss for the compute (arXiv 2203.15556)
NOT_ALIGNED = """\
was done to make its output true, fair
  or harmless. It is meant for research and as a starting point for further training, not for decisions about people."""


@dataclass(frozen=True)
class CardData:
    """A block store that a model was trained on; `files` are Markdown.

    `share` is its fraction of all training blocks, `commit` that of the Hub.
    """

    name: str
    commit: str | None
    manifest_sha256: str
    num_documents: int
    num_tokens: int
    share: float
    files: Sequence[str]


@dataclass(frozen=True)
class CardFacts:
    """What a model card needs that a run folder does not contain; no field has an absolute path of this machine.

    `license_name` is the Hub's name of the model's license, `base` the fine-tuned model, `tokenizer` is Markdown.
    """

    name: str
    step: int
    num_tokens: int
    num_epochs: float
    data: Sequence[CardData]
    block_length: int
    tokenizer: str
    license_name: str | None
    base: str | None = None


def beginning(facts: CardFacts) -> str:
    """What the training started from."""
    if facts.base is None:
        return "trained from random weights"
    return f"fine-tuned from {markdown_code(facts.base)}"


def purpose(facts: CardFacts) -> str:
    """What the model does, and what it was not trained for."""
    if facts.base is None:
        does = "continues text. It was not trained to follow instructions or to chat, and nothing"
    else:
        does = "answers like the conversations that it was trained on. Nothing else"
    return f"- The model {does} {NOT_ALIGNED}"


def limits(record: Record, facts: CardFacts) -> Iterator[str]:
    """The limits of the model."""
    if facts.base is None:
        ratio = facts.num_tokens / record["num_parameters"]
        few = f" (about {TOKENS_PER_PARAMETER} are usual)" if ratio < TOKENS_PER_PARAMETER else ""
        shown = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"
        yield f"- It was trained on {shown} tokens per parameter{few} and has no knowledge beyond its training data."
    else:
        yield f"- Its other knowledge and its limits are those of {markdown_code(facts.base)}."
    in_tuning = "" if facts.base is None else " in fine-tuning"
    yield f"- It has never seen more than {facts.block_length:,} tokens at once{in_tuning}."
    if facts.num_epochs > 1:
        yield "- It may reproduce text seen in several epochs."
    yield "- It was evaluated only on the text below: no benchmark, no test of bias or privacy."
    if facts.license_name is None:
        yield "- Its license is not set yet: `pretrain.py --license`."


def evaluation(history: RunHistory, *, curves: str | None) -> Iterator[str]:
    """The newest metrics of each split, in total and by source, and the curves if they exist."""
    rows = [row for prefix in EVALUATIONS if prefix in history.evaluations for row in _rows(history, prefix)]
    yield ""
    if rows:
        yield "| held-out text | step | loss | perplexity | accuracy | bits/byte |"
        yield "|---|---:|---:|---:|---:|---:|"
        yield from rows
        yield ""
        yield "The loss is the mean over all tokens, in nats; accuracy is how often the likeliest token is right; bits"
        yield "per byte are comparable between models with different tokenizers."
    else:
        yield "The model has not been evaluated yet."
    if curves is not None:
        yield f"\n![loss]({curves})"
    yield ""


def _rows(history: RunHistory, prefix: str) -> Iterator[str]:
    """A row for the split, and one for each of its sources."""
    record, split = history.evaluations[prefix], EVALUATIONS[prefix]
    sources = [name.partition("/")[2] for name in record if name.startswith(f"{prefix}_loss/")]
    for name, suffix in [(split, ""), *((f"{split}, {markdown_text(source)}", f"/{source}") for source in sources)]:
        loss = record[f"{prefix}_loss{suffix}"]
        shown = [loss if isinstance(loss, str) else f"{loss:.4f}"]
        for metric, template in (("perplexity", "{:,.2f}"), ("accuracy", "{:.1%}"), ("bits_per_byte", "{:.3f}")):
            value = record.get(f"{prefix}_{metric}{suffix}")
            shown.append(template.format(value) if isinstance(value, (int, float)) else "")
        yield f"| {name} | {record['step']:,} | {' | '.join(shown)} |"


def data(last: Record, facts: CardFacts) -> Iterator[str]:
    """Block stores with their hashes and files, tokens by source, and the tokenizer."""
    for data in facts.data:
        share = "" if len(facts.data) == 1 else f"{data.share:.1%} of the blocks: "
        store = markdown_code(data.name)
        if data.commit is not None:
            url = f"https://huggingface.co/datasets/{quote(data.name)}"
            store = f"[{markdown_text(data.name)}]({url}) at commit `{data.commit}`"
        yield (
            f"- {share}{store}, {data.num_documents:,} documents and {data.num_tokens:,} tokens to train on; "
            f"sha256 of its manifest.json: `{data.manifest_sha256}`."
        )
        yield from (f"  - {file}" for file in data.files[:MAX_FILES])
        if len(data.files) > MAX_FILES:
            yield f"  - and {len(data.files) - MAX_FILES:,} more"
    seen = {name.partition("/")[2]: count for name, count in last.items() if name.startswith("tokens/")}
    if seen:
        shown = ", ".join(f"{markdown_text(source)} {count:,}" for source, count in seen.items())
        yield f"- Tokens predicted by source: {shown}."
    yield f"- Tokenizer: {facts.tokenizer}."


def recipe(record: Record, facts: CardFacts) -> Iterator[str]:
    """Shape, batch, schedule, optimizer and precision."""
    identity, schedule = record["identity"], record["schedule"]
    config, settings = identity["model_config"], identity["optimizer_settings"]
    tied = ", tied embeddings" if config["tie_word_embeddings"] else ""
    yield (
        f"- Model: {config['num_hidden_layers']} layers, hidden size {config['hidden_size']:,}, "
        f"{config['num_attention_heads']} attention heads ({config['num_key_value_heads']} for keys and values), MLP "
        f"{config['intermediate_size']:,}, vocabulary {config['vocab_size']:,}, "
        f"{config['max_position_embeddings']:,} positions{tied}."
    )
    crosses = "does not cross" if identity["document_masking"] else "crosses"
    blocks = identity["global_batch_tokens"] // facts.block_length
    yield (
        f"- Optimizer step: {identity['global_batch_tokens']:,} tokens, {blocks:,} blocks of {facts.block_length:,}; "
        f"attention {crosses} documents."
    )
    yield (
        f"- Learning rate: {schedule['peak']:.2e} after {schedule['warmup_steps']:,} steps, {schedule['shape']} to "
        f"{schedule['peak' if schedule['shape'] == 'constant' else 'minimum']:.2e} at step {schedule['num_steps']:,}."
    )
    yield (
        f"- Optimizer: {identity['optimizer']}, betas {settings['adam_beta1']:g} and {settings['adam_beta2']:g}, "
        f"epsilon {settings['adam_epsilon']:g}, weight decay {settings['weight_decay']:g}, gradients clipped to "
        f"{settings['max_grad_norm']:g}."
    )
    products = (
        f", matrix multiplications of the layers in {name}" if (name := identity.get("product_precision")) else ""
    )
    yield f"- Precision {identity['precision']}{products}, DeepSpeed ZeRO-3; seed {identity['seed']}."


def cost(history: RunHistory) -> Iterator[str]:
    """Machine, time, energy, anomalies and software."""
    record, last, cost = history.run_record, history.last, history.cost
    hardware = record["hardware"]
    gpu = hardware.get("gpu")
    count = hardware["num_processes"]
    machine = f"{count} x {gpu}" if gpu else f"CPU, {count} process{'es' if count > 1 else ''}"
    starts = len(record["earlier_starts"]) + 1
    yield f"- Machine: {machine}{f'; {starts} starts' if starts > 1 else ''}."
    if cost.hours is not None and cost.process_hours is not None:
        each = f", {format_significant(cost.process_hours)} GPU hours" if gpu else ""
        lost = "; repeated steps count once" if starts > 1 else ""
        yield f"- Time: {format_significant(cost.hours)} hours{each}, with evaluations and saves{lost}."
    if cost.kilowatt_hours is not None:
        yield f"- Energy of the GPUs: {format_significant(cost.kilowatt_hours)} kWh, by their own counters."
    counts = {"loss spikes": last.get("spikes"), "steps with NaN or Inf, skipped": last.get("non_finite_steps")}
    found = [f"{count:,} {name}" for name, count in counts.items() if count]
    if found:
        yield f"- Anomalies: {'; '.join(found)}."
    yield f"- Software: {_software(record)}."


def _software(record: Record) -> str:
    packages = [f"{name} {version}" for name, version in record["packages"].items() if version]
    git = record.get("git")
    if git:
        packages.append(f"the programs at commit `{git['commit']}`{', with changes' if git['is_dirty'] else ''}")
    return ", ".join(packages)
