"""Flags of other tools that divide a model or a batch among GPUs, and what does that work here.

docs/explanation/parallelism.md has the kinds of parallelism with their costs.
"""

# Flags that only some programs have: a remedy counts in those that have its flag.
PRETRAIN = "dataset_revision"
TRAINS = "deepspeed"  # pretrain.py and finetune.py

WHERE = "docs/explanation/parallelism.md"
ELSEWHERE = f"torchtitan and Megatron-LM have it, see {WHERE}"
SHARDS = "not available: ZeRO shards the model over all GPUs, see --deepspeed"
TENSOR = f"{SHARDS}; remove it ({ELSEWHERE})"
TENSOR_OR_SEQUENCE = f"{SHARDS}, and --sequence_parallel_size N shares long blocks; remove it ({ELSEWHERE})"
PIPELINE = f"{SHARDS}, each layer for itself; remove it ({ELSEWHERE})"
EXPERT = f"not available: a Llama has no experts; remove it ({ELSEWHERE})"
DATA = "the number of processes decides it, all of them are data parallel, e.g. deepspeed --num_gpus=8; remove it"
GATHERED_WITHIN = "set zero_hpz_partition_size in the file of --deepspeed"
LAUNCHER = "the launcher starts the processes, e.g. deepspeed --num_gpus=8 pretrain.py; remove it"
MACHINES = "the launcher takes it, e.g. deepspeed --hostfile=HOSTS pretrain.py or torchrun --nnodes=2; remove it"

PARALLELISM: list[tuple[str, dict[str, str]]] = [
    (
        "tp tp_size tp_degree tensor_parallel tensor_parallel_size tensor_parallel_degree parallel_tensor "
        "parallel_tensor_size tensor_model_parallel_size model_parallel_size autotp_size",
        {PRETRAIN: TENSOR_OR_SEQUENCE, TRAINS: TENSOR},
    ),
    (
        "pp pp_size pp_degree pipeline pipeline_parallel pipeline_parallel_size pipeline_parallel_degree "
        "parallel_pipeline parallel_pipeline_size pipeline_model_parallel_size pipe_parallel_size num_stages "
        "virtual_pipeline_model_parallel_size num_layers_per_virtual_pipeline_stage",
        {TRAINS: PIPELINE},
    ),
    (
        "ep ep_size expert_parallel expert_parallel_size expert_parallel_degree expert_model_parallel_size",
        {TRAINS: EXPERT},
    ),
    (
        "sp sp_size cp cp_size sequence_parallel context_parallel context_parallel_size context_parallel_degree "
        "ulysses_sequence_parallel_size",
        {PRETRAIN: "--sequence_parallel_size"},
    ),
    ("dp dp_size data_parallel_size data_parallel_degree data_parallel_replicate_degree", {TRAINS: DATA}),
    ("hpz hpz_partition_size zero_hpz_partition_size parallel_weight_size", {TRAINS: GATHERED_WITHIN}),
    ("nproc_per_node num_processes devices gpus ngpus launcher", {TRAINS: LAUNCHER}),
    ("nnodes num_nodes node_rank hostfile", {TRAINS: MACHINES}),
]
