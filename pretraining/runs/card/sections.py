"""The sections of a model card, line by line; what was not measured is left out."""

from collections.abc import Iterator
from urllib.parse import quote

from pretraining.runs.card.facts import CardFacts
from pretraining.runs.cost import format_significant
from pretraining.runs.history import Record, RunHistory
from pretraining.system.escapes import markdown_code, markdown_text

MOST_FILES = 20  # named as sources; manifest.json has them all
TOKENS_PER_PARAMETER = 20  # about what gives the lowest loss for the compute (arXiv 2203.15556)

NOT_DONE = """\
was done to keep what it writes true,
  fair or harmless: it is for research and as a beginning for further training, not for decisions about people."""


def beginning(facts: CardFacts) -> str:
    """What the weights were at first, and what went into them."""
    if facts.base is None:
        return "trained from random weights"
    return f"fine-tuned from {markdown_code(facts.base)}"


def purpose(facts: CardFacts) -> str:
    """What the model does, and what was not done."""
    if facts.base is None:
        does = "goes on with a text. It was not taught to follow instructions or to talk, and nothing"
    else:
        does = "answers as the conversations do that it has learned from. Nothing else"
    return f"- It {does} {NOT_DONE}"


def limits(record: Record, facts: CardFacts) -> Iterator[str]:
    """What is not to be expected of the model."""
    if facts.base is None:
        ratio = facts.num_tokens / record["num_parameters"]
        few = f", where about {TOKENS_PER_PARAMETER} are usual" if ratio < TOKENS_PER_PARAMETER else ""
        told = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"
        yield f"- It has seen {told} tokens for each parameter{few}, and knows nothing but what stands in its data."
    else:
        yield f"- What it knows besides is what {markdown_code(facts.base)} knew, whose limits are its own."
    yield f"- It has never seen more than {facts.block_length:,} tokens at once{'' if facts.base is None else ' here'}."
    if facts.num_epochs > 1:
        yield "- What it has read several times it may repeat word for word."
    yield "- It was measured on the text below and on nothing else: no benchmark, no test of bias or of privacy."
    if facts.license_name is None:
        yield "- Its licence is not named yet: `pretrain.py --license`."


def evaluation(history: RunHistory, *, curves: str | None) -> Iterator[str]:
    """The newest figures of each split, in total and by source, and the curves if there are."""
    rows = [row for split, records in history.evaluations.items() if records for row in _rows(split, records[-1])]
    yield ""
    if rows:
        yield "| text that it was not trained on | step | loss | perplexity | accuracy | bits/byte |"
        yield "|---|---:|---:|---:|---:|---:|"
        yield from rows
        yield ""
        yield "Each block counts once. The loss is the mean of all tokens, in nats; accuracy is how often the likeliest"
        yield "token was the right one; bits per byte compare models of different tokenizers."
    else:
        yield "It has not been measured yet."
    if curves is not None:
        yield f"\n![loss]({curves})"
    yield ""


def _rows(split: str, record: Record) -> Iterator[str]:
    """That of the split, and one for each of its sources."""
    prefix = "test_" if split == "test" else "eval_"
    sources = [name.partition("/")[2] for name in record if name.startswith(f"{prefix}loss/")]
    for name, suffix in [(split, ""), *((f"{split}, {markdown_text(source)}", f"/{source}") for source in sources)]:
        loss = record[f"{prefix}loss{suffix}"]
        figures = [loss if isinstance(loss, str) else f"{loss:.4f}"]
        for figure, template in (("perplexity", "{:,.2f}"), ("accuracy", "{:.1%}"), ("bits_per_byte", "{:.3f}")):
            value = record.get(f"{prefix}{figure}{suffix}")
            figures.append(template.format(value) if isinstance(value, (int, float)) else "")
        yield f"| {name} | {record['step']:,} | {' | '.join(figures)} |"


def data(last: Record, facts: CardFacts) -> Iterator[str]:
    """Block stores with their hashes and files, tokens by source, tokenizer."""
    for data in facts.data:
        share = "" if len(facts.data) == 1 else f"{data.share:.1%} of the blocks: "
        place = (
            markdown_code(data.name)
            if data.commit is None
            else f"[{markdown_text(data.name)}](https://huggingface.co/datasets/{quote(data.name)})"
        )
        commit = "" if data.commit is None else f" at commit `{data.commit}`"
        yield (
            f"- {share}{place}{commit}, {data.num_documents:,} documents and {data.num_tokens:,} tokens to train on; "
            f"sha256 of its manifest.json: `{data.manifest_sha256}`."
        )
        yield from (f"  - {file}" for file in data.files[:MOST_FILES])
        if len(data.files) > MOST_FILES:
            yield f"  - and {len(data.files) - MOST_FILES:,} more"
    seen = {name.partition("/")[2]: count for name, count in last.items() if name.startswith("tokens/")}
    if seen:
        told = ", ".join(f"{markdown_text(source)} {count:,}" for source, count in seen.items())
        yield f"- Tokens predicted by source: {told}."
    yield f"- Tokenizer: {facts.tokenizer}."


def recipe(record: Record, facts: CardFacts) -> Iterator[str]:
    """Shape, batch, schedule, optimizer, precision."""
    identity, schedule = record["identity"], record["schedule"]
    config, settings = identity["model_config"], identity["optimizer_settings"]
    tied = ", tied embeddings" if config["tie_word_embeddings"] else ""
    yield (
        f"- Model: {config['num_hidden_layers']} layers, hidden size {config['hidden_size']:,}, "
        f"{config['num_attention_heads']} attention heads ({config['num_key_value_heads']} of keys and values), MLP "
        f"{config['intermediate_size']:,}, vocabulary {config['vocab_size']:,}, "
        f"{config['max_position_embeddings']:,} positions{tied}."
    )
    crosses = "does not cross" if identity["document_masking"] else "crosses"
    blocks = identity["global_batch_tokens"] // facts.block_length
    yield (
        f"- Step: {identity['global_batch_tokens']:,} tokens, {blocks:,} blocks of {facts.block_length:,}; attention "
        f"{crosses} documents."
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
    products = f", products of the layers in {name}" if (name := identity.get("product_precision")) else ""
    yield f"- Precision {identity['precision']}{products}, DeepSpeed ZeRO-3; seed {identity['seed']}."


def cost(history: RunHistory) -> Iterator[str]:
    """Machine, time, energy, faults, software."""
    record, last, cost = history.run_record, history.last, history.cost
    hardware = record["hardware"]
    gpu = hardware.get("gpu")
    count = hardware["num_processes"]
    machine = f"{count} x {gpu}" if gpu else f"CPU, {count} process{'es' if count > 1 else ''}"
    starts = len(record["earlier_starts"]) + 1
    yield f"- Machine: {machine}{f'; {starts} starts' if starts > 1 else ''}."
    if cost.hours is not None and cost.process_hours is not None:
        each = f", {format_significant(cost.process_hours)} GPU hours" if gpu else ""
        lost = "; steps that a kill undid are not counted" if starts > 1 else ""
        yield f"- Time: {format_significant(cost.hours)} hours{each}, evaluations and saves among them{lost}."
    if cost.kilowatt_hours is not None:
        yield f"- Energy of the GPUs: {format_significant(cost.kilowatt_hours)} kWh, by their own count."
    faults = {"spikes of the loss": last.get("spikes"), "steps skipped as no number": last.get("non_finite_steps")}
    found = [f"{count:,} {name}" for name, count in faults.items() if count]
    if found:
        yield f"- Faults: {', '.join(found)}."
    yield f"- Software: {_software(record)}."


def _software(record: Record) -> str:
    packages = [f"{name} {version}" for name, version in record["packages"].items() if version]
    git = record.get("git")
    if git:
        packages.append(f"the programs at commit `{git['commit']}`{', with changes' if git['is_dirty'] else ''}")
    return ", ".join(packages)
