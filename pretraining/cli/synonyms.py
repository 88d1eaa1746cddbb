"""What an unknown flag means: names of other tools, earlier names of this suite, and what to use instead.

Names come from run_clm.py, Megatron-LM, nanoGPT, nanochat, LitGPT, torchtitan, LLM Foundry, ColossalAI, InternEvo and
llama.cpp, in lowercase, with `_` for `-` and for the dot of `train.lr_warmup_steps`.
"""

from collections.abc import Collection

from pretraining.cli.parallelism import PARALLELISM, PRETRAIN, TRAINS

# Flags that only some other programs have.
PREPROCESS = "num_slices"
GENERATE = "prompt"
DATA = "data_files"
# What is not here, and what does its work.
ZERO = "ZeRO-3 is always on; choose its memory by --deepspeed, e.g. ds_config_offload_optimizer.json"
ADAPTERS = "not available: all weights are trained; remove it"
ALWAYS_MASKED = "only answers are learned, always; remove it"
FLASH = "--attention_implementation sdpa, the default, is flash attention where torch has it"
OVERWRITE = "not available: the same command resumes; for a new run choose another --output_dir"
CONTINUE = "--resume CHECKPOINT (continue that run) or --weights MODEL (start a new run from its weights)"
BLOCK_LENGTH = "preprocess.py --block_length N makes the blocks, and pretrain.py takes their length"
FILES = "preprocess.py --data_files FILES makes blocks, then use --dataset blocks"
TOKENIZER = "preprocess.py --tokenizer FOLDER; the block store brings it along"
SPLIT = "preprocess.py --split 949,50,1 makes train, validation and test"
OF_MODEL = "the tokenizer comes with --model; remove it"
# The same in another unit.
MICRO_BATCHES = "--global_batch_tokens N, in tokens of all GPUs (micro batches x their blocks x block length x GPUs)"
SAMPLES = "--max_tokens N, in tokens (samples x block length)"
TOKENS_PER_PARAMETER = "--max_tokens N, in tokens (the ratio x parameters)"
DURATION = "--max_tokens N in tokens, --max_steps N in steps or --num_train_epochs N in epochs"
HOURS = "--max_hours X, in hours"
SAMPLES_OF_SCHEDULE = "--schedule_steps N, in steps (samples / blocks per step)"
SAMPLES_OF_WARMUP = "--warmup_steps N, in steps (samples / blocks per step)"
SHARE_OF_RATE = "--min_learning_rate X, a learning rate (the share x --learning_rate)"
BATCHES = "--eval_blocks N, in blocks (batches x blocks per batch)"
NEW_TOKENS = "--max_new_tokens N, without the tokens of the prompt"
TENSORBOARD = "TensorBoard files are in the folder tensorboard of --output_dir"

# Names, and their remedy in each kind of program, by a flag that such a program has; the first that fits counts.
SYNONYMS: list[tuple[str, dict[str, str]]] = [
    # Batch and length
    (
        "b bs mbs batch_size micro_batch micro_batch_size micro_bsz device_batch_size local_batch_size "
        "per_gpu_train_batch_size device_train_microbatch_size train_micro_batch_size_per_gpu",
        {TRAINS: "--per_device_train_batch_size", "batch_size": "--batch_size"},
    ),
    (
        "gbs global_batch_size global_train_batch_size train_batch_size num_samples_in_batch",
        {TRAINS: "--global_batch_blocks"},
    ),
    ("total_batch_size", {TRAINS: "--global_batch_tokens"}),
    ("micro_num grad_accum gradient_accumulation", {TRAINS: MICRO_BATCHES}),
    (
        "l max_length max_len max_seq_len max_seq_length max_sequence_length seq_len seq_length sequence_length "
        "context_length block_size",
        {PRETRAIN: BLOCK_LENGTH, "block_length": "--block_length", GENERATE: NEW_TOKENS},
    ),
    ("e epoch epochs num_epochs n_epochs max_epochs", {TRAINS: "--num_train_epochs"}),
    (
        "train_iters max_iters num_iterations iters steps num_steps total_steps train_steps max_train_steps",
        {TRAINS: "--max_steps"},
    ),
    ("train_tokens total_tokens", {TRAINS: "--max_tokens"}),
    ("train_samples", {TRAINS: SAMPLES}),
    ("target_param_data_ratio", {TRAINS: TOKENS_PER_PARAMETER}),
    ("max_duration", {TRAINS: DURATION}),
    ("exit_duration_in_mins", {TRAINS: f"{HOURS} (minutes / 60)"}),
    ("max_time time_limit", {TRAINS: HOURS}),
    # Optimizer and schedule
    ("lr_decay_iters lr_decay_steps", {TRAINS: "--schedule_steps"}),
    ("lr_decay_samples", {TRAINS: SAMPLES_OF_SCHEDULE}),
    ("lr max_lr peak_lr base_lr matrix_lr", {TRAINS: "--learning_rate"}),
    ("min_lr lr_min eta_min final_lr", {TRAINS: "--min_learning_rate"}),
    ("min_lr_ratio min_lr_factor final_lr_frac", {TRAINS: SHARE_OF_RATE}),
    ("scheduler lr_scheduler lr_schedule lr_decay_style decay_lr", {TRAINS: "--lr_scheduler_type"}),
    (
        "s warmup warmup_iters lr_warmup_iters lr_warmup_steps warmup_ratio warmup_fraction lr_warmup_fraction",
        {TRAINS: "--warmup_steps"},
    ),
    ("lr_warmup_samples", {TRAINS: SAMPLES_OF_WARMUP}),
    ("warmdown_ratio warmdown_iters decay_ratio lr_wsd_decay_iters", {TRAINS: "--decay_steps"}),
    (
        "clip_grad grad_clip gradient_clip gradient_clipping gradient_clip_val clip_grad_norm max_norm",
        {TRAINS: "--max_grad_norm"},
    ),
    ("w wd", {TRAINS: "--weight_decay"}),
    ("beta1", {TRAINS: "--adam_beta1"}),
    ("betas", {TRAINS: "--adam_beta1 X --adam_beta2 Y"}),
    ("beta2", {TRAINS: "--adam_beta2"}),
    ("eps adam_eps", {TRAINS: "--adam_epsilon"}),
    ("opt optimizer optimizer_name optimizer_type", {TRAINS: "--optim"}),
    # Precision, memory and GPUs
    ("x amp dtype torch_dtype precision mixed_precision", {TRAINS: "--bf16 or --fp16", "dtype": "--dtype"}),
    (
        "g grad_checkpoint grad_ckpt gradient_checkpoint activation_checkpoint activation_checkpoint_mode "
        "checkpoint_activations recompute recompute_activations recompute_granularity",
        {TRAINS: "--activation_checkpointing"},
    ),
    ("attn_implementation attn_impl attention_backend", {TRAINS: "--attention_implementation"}),
    ("a flash_attention flash_attn use_flash_attn use_flash_attention enable_flash_attention", {TRAINS: FLASH}),
    ("compile compile_enable torch_compile", {TRAINS: "--compile_layers"}),
    ("float8 fp8_format fp8_recipe", {PRETRAIN: "--fp8 --compile_layers"}),
    ("ds_config deepspeed_config", {TRAINS: "--deepspeed"}),
    ("offload cpu_offload offload_optimizer", {TRAINS: "--deepspeed ds_config_offload_optimizer.json"}),
    ("p", {GENERATE: "--prompt"}),
    (
        "p plugin zero zero1 zero_stage use_distributed_optimizer data_parallel_shard_degree sharding_strategy",
        {TRAINS: ZERO},
    ),
    *PARALLELISM,
    ("master_port port", {TRAINS: "deepspeed --master_port=N pretrain.py"}),
    ("device", {TRAINS: "--use_cpu, or nothing for all GPUs"}),
    # Model
    (
        "c m config model_config config_name config_file model_name model_type model_flavor model_size flavor preset "
        "model_path model_dir model_id",
        {"model": "--model"},
    ),
    (
        "model_name_or_path pretrained pretrained_model init_from initial_checkpoint_dir initial_load_path",
        {PRETRAIN: "--weights", "model": "--model"},
    ),
    (
        "ckpt ckpt_path checkpoint checkpoint_path load load_path load_checkpoint",
        {PRETRAIN: CONTINUE, TRAINS: "--resume", "model": "--model"},
    ),
    ("config_overrides model_args", {PRETRAIN: "--model_overrides"}),
    ("depth n_layer n_layers num_layers num_hidden_layers", {PRETRAIN: "--model_overrides num_hidden_layers=N"}),
    ("dim d_model n_embd embed_dim hidden_size", {PRETRAIN: "--model_overrides hidden_size=N"}),
    ("n_head n_heads num_heads num_attention_heads", {PRETRAIN: "--model_overrides num_attention_heads=N"}),
    (
        "n_kv_head n_kv_heads num_kv_heads num_query_groups n_query_groups num_kv_attention_heads num_key_value_heads",
        {PRETRAIN: "--model_overrides num_key_value_heads=N"},
    ),
    ("ffn_dim ffn_hidden_size intermediate_size", {PRETRAIN: "--model_overrides intermediate_size=N"}),
    ("max_position_embeddings", {PRETRAIN: "--model_overrides max_position_embeddings=N"}),
    ("rope_theta rotary_base", {PRETRAIN: "--model_overrides rope_theta=N"}),
    ("init_method_std initializer_range", {PRETRAIN: "--model_overrides initializer_range=X"}),
    ("norm_epsilon rms_norm_eps", {PRETRAIN: "--model_overrides rms_norm_eps=X"}),
    ("make_vocab_size_divisible_by", {PRETRAIN: "--pad_vocabulary_to_multiple_of"}),
    ("lora qlora peft lora_r lora_rank lora_alpha use_lora use_peft load_in_4bit load_in_8bit", {TRAINS: ADAPTERS}),
    # Data
    ("d", {PRETRAIN: "--dataset", DATA: "--data_files"}),
    (
        "data_files dataset_name train_file train_files input input_file input_files files",
        {PRETRAIN: FILES, DATA: "--data_files"},
    ),
    (
        "data_path data_dir dataset_dir dataset_path train_data_path train_folder",
        {PRETRAIN: "--dataset", DATA: "--data_files"},
    ),
    ("dataset", {DATA: "--data_files"}),
    (
        "tokenizer tokenizer_name tokenizer_path tokenizer_model tokenizer_name_or_path vocab_file merge_file",
        {PRETRAIN: TOKENIZER, "tokenizer": "--tokenizer", "model": OF_MODEL},
    ),
    ("split validation_split_percentage validation_file val_data_path", {PRETRAIN: SPLIT, "split": "--split"}),
    ("json_keys text_key text_column text_column_name content_key", {"text_field": "--text_field"}),
    (
        "workers num_proc preprocessing_num_workers",
        {"num_workers": "--num_workers", TRAINS: "--dataloader_num_workers"},
    ),
    ("num_workers", {TRAINS: "--dataloader_num_workers"}),
    ("append_eod append_eos add_eos", {PREPROCESS: "EOS follows each document, always; remove it"}),
    ("prepend_bos use_bos", {PREPROCESS: "--add_bos"}),
    ("reset_position_ids reset_attention_mask isolate_documents", {PRETRAIN: "--document_masking"}),
    ("eod_mask_loss mask_document_starts", {PRETRAIN: "--ignore_first_token"}),
    ("mock_data dummy_data use_random_dataset", {PRETRAIN: "--dataset synthetic"}),
    ("prompt_column prompt_key", {"prompt_field": "--prompt_field"}),
    ("response_column response_key completion_column", {"response_field": "--response_field"}),
    ("train_on_inputs mask_prompt completion_only_loss", {TRAINS: ALWAYS_MASKED}),
    # Folders, checkpoints and evaluation
    (
        "o out_dir output output_path output_prefix save save_dir save_path save_folder save_ckpt_folder dump_folder",
        {"output_dir": "--output_dir", "output": "--output"},
    ),
    ("checkpoint_dir checkpoint_folder", {"output_dir": "--output_dir", "model": "--model"}),
    (
        "f resume_from resume_from_checkpoint resume_from_step auto_resume autoresume",
        {TRAINS: "--resume", "model": "--model"},
    ),
    ("overwrite overwrite_output_dir", {TRAINS: OVERWRITE}),
    ("i save_every save_interval checkpoint_interval checkpoint_every", {TRAINS: "--save_steps"}),
    ("keep_latest_k save_num_checkpoints_to_keep", {TRAINS: "--save_total_limit"}),
    ("eval_every eval_interval valid_every val_check_interval", {TRAINS: "--eval_steps"}),
    ("evaluation_strategy", {TRAINS: "--eval_strategy"}),
    ("eval_iters eval_batches eval_max_iters eval_subset_num_batches", {TRAINS: BATCHES}),
    ("max_eval_samples", {TRAINS: "--eval_blocks"}),
    ("icl_tasks eval_harness_tasks", {TRAINS: "--eval_tasks"}),
    (
        "eval_batch_size val_batch_size per_gpu_eval_batch_size device_eval_batch_size",
        {TRAINS: "--per_device_eval_batch_size"},
    ),
    ("log_every log_freq log_interval log_every_n_steps", {TRAINS: "--logging_steps"}),
    ("t log_dir logging_dir tensorboard_dir tensorboard_log_dir", {TRAINS: TENSORBOARD}),
    ("wandb use_wandb wandb_log enable_wandb", {TRAINS: "--report_to wandb"}),
    ("wandb_project", {TRAINS: "--project"}),
    ("experiment_name job_name wandb_run_name", {TRAINS: "--run_name"}),
    ("random_seed global_seed", {"seed": "--seed"}),
    ("sample_every", {TRAINS: "--sample_steps"}),
    ("profiler profile_step_start enable_profiling", {TRAINS: "--profile"}),
    ("hub_repo hub_repo_id repo_id hub_model_name", {TRAINS: "--hub_model_id"}),
    # Generation
    ("n n_samples num_completions num_return_sequences", {"num_samples": "--num_samples"}),
    ("max_tokens max_gen_len max_generate_tokens n_predict num_tokens", {GENERATE: "--max_new_tokens"}),
    ("temp", {"temperature": "--temperature"}),
    ("do_sample", {GENERATE: "--greedy for none; sampling is the default"}),
    ("beams beam_size", {"num_beams": "--num_beams"}),
    ("text prompts query start", {GENERATE: "--prompt"}),
    ("system_prompt", {"system": "--system"}),
    # Earlier names of this suite
    ("held_out", {"reference_files": "--reference_files"}),
    ("plan_only", {TRAINS: "--dry_run"}),
    ("plan_measure", {TRAINS: "--profile_plan"}),
    ("hang_minutes", {TRAINS: "--hang_timeout_minutes"}),
    ("assumed_mfu", {TRAINS: "--assumed_hfu"}),
    ("restarts max_restarts", {TRAINS: "start the command by `python3 -m tools.supervise --restarts N -- COMMAND`"}),
]


def remedy_of(name: str, flags: Collection[str]) -> str | None:
    """What to use in a program with `flags` instead of `--name`, None where nothing is known.

    >>> remedy_of("train.micro_batch_size", ["deepspeed", "per_device_train_batch_size"])
    '--per_device_train_batch_size'
    """
    plain = name.lower().replace("-", "_")
    last = plain.rpartition(".")[2]
    for spelling in dict.fromkeys((plain.replace(".", "_"), last)):
        for names, remedies in SYNONYMS:
            if spelling in names.split():
                found = next((remedy for program, remedy in remedies.items() if program in flags), None)
                if found is not None:
                    return found
    return f"--{last}" if last != plain and last in flags else None
