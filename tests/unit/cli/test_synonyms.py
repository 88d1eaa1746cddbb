"""Flags of other tools: each leads to the flag of the same meaning, in the program that has it."""

import re
from collections import Counter

import pytest

from docs.generate_reference import PROGRAMS, parser_of
from pretraining.cli.arguments.finetune import parse_finetune_arguments
from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.cli.synonyms import SYNONYMS, remedy_of
from pretraining.errors import UserError

PARSERS = {
    "pretrain": lambda words: parse_pretrain_arguments("", words),
    "finetune": lambda words: parse_finetune_arguments("", words),
    "preprocess": lambda words: parse_recipe("", [dataclass_group("", PreprocessArguments)], words),
    "generate": lambda words: parse_recipe("", [dataclass_group("", GenerateArguments)], words),
}
# What users type, and a part of the answer; flags alone are answered by "(did you mean FLAG?)".
TYPED = {
    "pretrain": """
        # run_clm.py of transformers
        --model_name_or_path          weights
        --config_name                 model
        --config_overrides            model_overrides
        --tokenizer_name              preprocess.py --tokenizer
        --dataset_name                preprocess.py --data_files
        --train_file                  preprocess.py --data_files
        --validation_split_percentage preprocess.py --split
        --block_size                  preprocess.py --block_length
        --preprocessing_num_workers   dataloader_num_workers
        --per_gpu_train_batch_size    per_device_train_batch_size
        --max_eval_samples            eval_blocks
        --evaluation_strategy         eval_strategy
        --attn_implementation         attention_implementation
        --torch_dtype                 --bf16 or --fp16
        --logging_dir                 TensorBoard files are in
        --overwrite_output_dir        the same command resumes
        --warmup_ratio                warmup_steps
        --torch_compile               compile_layers
        # Megatron-LM
        --num-layers                  --model_overrides num_hidden_layers=N
        --hidden-size                 --model_overrides hidden_size=N
        --ffn-hidden-size             --model_overrides intermediate_size=N
        --num-attention-heads         --model_overrides num_attention_heads=N
        --num-query-groups            --model_overrides num_key_value_heads=N
        --max-position-embeddings     --model_overrides max_position_embeddings=N
        --rotary-base                 --model_overrides rope_theta=N
        --init-method-std             --model_overrides initializer_range=X
        --norm-epsilon                --model_overrides rms_norm_eps=X
        --make-vocab-size-divisible-by pad_vocabulary_to_multiple_of
        --seq-length                  preprocess.py --block_length
        --micro-batch-size            per_device_train_batch_size
        --global-batch-size           global_batch_blocks
        --train-iters                 max_steps
        --train-samples               --max_tokens N, in tokens (samples x block length)
        --lr-decay-samples            --schedule_steps N, in steps (samples / blocks per step)
        --lr-warmup-samples           --warmup_steps N, in steps (samples / blocks per step)
        --lr-decay-iters              schedule_steps
        --lr-decay-style              lr_scheduler_type
        --lr-warmup-iters             warmup_steps
        --lr-warmup-fraction          warmup_steps
        --min-lr                      min_learning_rate
        --clip-grad                   max_grad_norm
        --adam-eps                    adam_epsilon
        --data-path                   dataset
        --vocab-file                  preprocess.py --tokenizer
        --save                        output_dir
        --load                        --resume CHECKPOINT (continue that run) or --weights MODEL (start a new run
        --save-interval               save_steps
        --eval-interval               eval_steps
        --eval-iters                  --eval_blocks N, in blocks (batches x blocks per batch)
        --log-interval                logging_steps
        --tensorboard-dir             TensorBoard files are in
        --wandb-project               project
        --exit-duration-in-mins       --max_hours X, in hours (minutes / 60)
        --recompute-activations       activation_checkpointing
        --checkpoint-activations      activation_checkpointing
        --use-flash-attn              --attention_implementation sdpa
        --tensor-model-parallel-size  --sequence_parallel_size N shares long blocks
        --pipeline-model-parallel-size torchtitan and Megatron-LM have it
        --num-layers-per-virtual-pipeline-stage each layer for itself
        --expert-model-parallel-size  a Llama has no experts
        --tensor_parallel_size        docs/explanation/parallelism.md
        --pipeline_parallel_size      docs/explanation/parallelism.md
        --tp                          docs/explanation/parallelism.md
        --pp                          docs/explanation/parallelism.md
        --expert_parallel_size        docs/explanation/parallelism.md
        --model-parallel-size         docs/explanation/parallelism.md
        --pipe-parallel-size          docs/explanation/parallelism.md
        --nnodes                      the launcher takes it
        --context-parallel-size       sequence_parallel_size
        --use-distributed-optimizer   --deepspeed ds_config.json
        --reset-position-ids          document_masking
        --eod-mask-loss               ignore_first_token
        --mock-data                   --dataset synthetic
        # nanoGPT, nanochat
        --n_layer                     --model_overrides num_hidden_layers=N
        --n_embd                      --model_overrides hidden_size=N
        --n_head                      --model_overrides num_attention_heads=N
        --depth                       --model_overrides num_hidden_layers=N
        --batch_size                  per_device_train_batch_size
        --device_batch_size           per_device_train_batch_size
        --total_batch_size            global_batch_tokens
        --max_iters                   max_steps
        --num_iterations              max_steps
        --target_param_data_ratio     --max_tokens N, in tokens (the ratio x parameters)
        --final_lr_frac               --min_learning_rate X, a learning rate (the share x --learning_rate)
        --warmup_iters                warmup_steps
        --warmdown_ratio              decay_steps
        --matrix_lr                   learning_rate
        --grad_clip                   max_grad_norm
        --out_dir                     output_dir
        --init_from                   weights
        --eval_every                  eval_steps
        --save_every                  save_steps
        --sample_every                sample_steps
        --device                      --use_cpu
        --compile                     compile_layers
        # LitGPT, torchtitan, LLM Foundry
        --train.global_batch_size     global_batch_blocks
        --train.micro_batch_size      per_device_train_batch_size
        --train.max_tokens            max_tokens
        --train.max_seq_length        preprocess.py --block_length
        --train.lr_warmup_steps       warmup_steps
        --train.min_lr                min_learning_rate
        --train.save_interval         save_steps
        --eval.interval               eval_steps
        --eval.max_iters              --eval_blocks N, in blocks (batches x blocks per batch)
        --train.max_time              --max_hours X, in hours
        --lr_scheduler.min_lr_factor  --min_learning_rate X, a learning rate (the share x --learning_rate)
        --initial_checkpoint_dir      weights
        --precision                   --bf16 or --fp16
        --devices                     deepspeed --num_gpus
        --trainer.num_nodes           the launcher takes it
        --trainer.resume_from_checkpoint resume
        --training.local_batch_size   per_device_train_batch_size
        --training.seq_len            preprocess.py --block_length
        --training.steps              max_steps
        --optimizer.lr                learning_rate
        --lr_scheduler.warmup_steps   warmup_steps
        --checkpoint.interval         save_steps
        --checkpoint.folder           output_dir
        --job.dump_folder             output_dir
        --metrics.log_freq            logging_steps
        --metrics.enable_wandb        --report_to wandb
        --model.flavor                model
        --activation_checkpoint.mode  activation_checkpointing
        --parallelism.tensor_parallel_degree ZeRO shards the model over all GPUs
        --global_train_batch_size     global_batch_blocks
        --device_train_microbatch_size per_device_train_batch_size
        --max_duration                --max_tokens N in tokens, --max_steps N in steps or --num_train_epochs N in epochs
        --save_folder                 output_dir
        --load_path                   --weights MODEL (start a new run from its weights)
        --autoresume                  resume
        --d_model                     --model_overrides hidden_size=N
        --checkpoint.initial_load_path weights
        --icl_tasks                   eval_tasks
        # ColossalAI, with its short forms, and InternEvo
        -c                            model
        --config                      model
        -p                            --deepspeed ds_config.json
        --plugin                      --deepspeed ds_config.json
        -d                            dataset
        -e                            num_train_epochs
        --num_epochs                  num_train_epochs
        -b                            per_device_train_batch_size
        --lr                          learning_rate
        -w                            weight_decay
        -s                            warmup_steps
        -g                            activation_checkpointing
        --grad_checkpoint             activation_checkpointing
        -l                            preprocess.py --block_length
        --max_length                  preprocess.py --block_length
        -x                            --bf16 or --fp16
        --mixed_precision             --bf16 or --fp16
        -i                            save_steps
        -o                            output_dir
        --save_dir                    output_dir
        -f                            resume
        --gradient_clipping           max_grad_norm
        -t                            TensorBoard files are in
        --tensorboard_dir             TensorBoard files are in
        -a                            --attention_implementation sdpa
        --flash_attention             --attention_implementation sdpa
        --hostfile                    the launcher takes it
        --data.micro_bsz              per_device_train_batch_size
        --data.micro_num              --global_batch_tokens N, in tokens of all GPUs (micro batches x their blocks
        --data.train_folder           dataset
        --data.valid_every            eval_steps
        --model.num_kv_attention_heads --model_overrides num_key_value_heads=N
        --hybrid_zero_optimizer.clip_grad_norm max_grad_norm
        --ckpt.save_ckpt_folder       output_dir
        --parallel.tensor.size        docs/explanation/parallelism.md
        --parallel.pipeline.size      docs/explanation/parallelism.md
        --parallel.weight.size        zero_hpz_partition_size in the file of --deepspeed
        --data_parallel_size          the number of processes decides it
        --parallel.zero1              --deepspeed ds_config.json
        # DeepSpeed
        --deepspeed_config            deepspeed
        --zero_stage                  --deepspeed ds_config.json
        --offload_optimizer           --deepspeed ds_config_offload_optimizer.json
        --master_port                 deepspeed --master_port
        --gradient_clipping           max_grad_norm
        --epochs                      num_train_epochs
        --tokenizer                   preprocess.py --tokenizer
        --data_files                  preprocess.py --data_files
    """,
    "preprocess": """
        --input                       data_files
        --dataset                     data_files
        --dataset_name                data_files
        --train_file                  data_files
        --json-keys                   text_field
        --text_column                 text_field
        --output-prefix               output_dir
        -o                            output_dir
        --workers                     num_workers
        --preprocessing_num_workers   num_workers
        --tokenizer-model             tokenizer
        --tokenizer_name              tokenizer
        --vocab-file                  tokenizer
        --append-eod                  EOS follows each document
        --seq_length                  block_length
        -l                            block_length
        --block_size                  block_length
        --validation_split_percentage split
    """,
    "generate": """
        --max_length                  --max_new_tokens N, without the tokens of the prompt
        --max_tokens                  max_new_tokens
        -n                            num_samples
        --num_return_sequences        num_samples
        --temp                        temperature
        --do_sample                   --greedy
        -p                            prompt
        --text                        prompt
        --model_name_or_path          model
        --checkpoint_dir              model
        --ckpt_path                   model
        --load                        model
        -b                            batch_size
        --torch_dtype                 dtype
        --tokenizer                   comes with --model
        --beam_size                   num_beams
        --system_prompt               system
    """,
    "finetune": """
        --model_name_or_path          model
        --dataset                     data_files
        --data_path                   data_files
        --train_file                  data_files
        --max_seq_length              block_length
        --tokenizer                   comes with --model
        --prompt_column               prompt_field
        --response_column             response_field
        --lora                        all weights are trained
        --qlora                       all weights are trained
        --peft                        all weights are trained
        --use_peft                    all weights are trained
        --lora_r                      all weights are trained
        --lora_rank                   all weights are trained
        --lora_alpha                  all weights are trained
        --lr                          learning_rate
        --num_epochs                  num_train_epochs
        --train_on_inputs             only answers are learned
        --per_gpu_train_batch_size    per_device_train_batch_size
    """,
}
LINES = [
    (program, *line.split(maxsplit=1))
    for program, lines in TYPED.items()
    for line in map(str.strip, lines.splitlines())
    if line and not line.startswith("#")
]


def problems(program: str, words: list[str]) -> list[str]:
    with pytest.raises(UserError) as caught:
        PARSERS[program](words)
    return list(caught.value.problems)


@pytest.mark.parametrize(("program", "typed", "answer"), LINES, ids=lambda value: value.split()[0])
def test_what_users_of_other_tools_type_is_answered_by_meaning(program: str, typed: str, answer: str) -> None:
    (problem,) = problems(program, [typed, "1"])
    assert answer in problem, problem
    if re.fullmatch(r"\w+", answer):
        assert problem.endswith(f": unknown flag (did you mean {answer}?)"), problem


def flags_of_programs() -> dict[str, set[str]]:
    return {
        name: {option for action in parser_of(name)._actions for option in action.option_strings} for name in PROGRAMS
    }


OF_LAUNCHERS = {"--num_gpus", "--master_port", "--restarts", "--hostfile", "--nnodes"}


def test_every_remedy_names_flags_that_exist_in_its_program() -> None:
    flags = flags_of_programs()
    for names, remedies in SYNONYMS:
        for guard, remedy in remedies.items():
            named = re.search(r"(\w+)\.py", remedy)
            programs = [named[1]] if named and named[1] in flags else [p for p in flags if f"--{guard}" in flags[p]]
            assert programs, (names, guard)
            for flag in set(re.findall(r"--\w+", remedy)) - OF_LAUNCHERS:
                assert any(flag in flags[p] for p in flags), (names, remedy)
                if not named:
                    assert all(flag in flags[p] for p in programs), (names, remedy)


def test_no_name_has_two_answers_in_a_program() -> None:
    counts = Counter((name, guard) for names, remedies in SYNONYMS for name in names.split() for guard in remedies)
    assert [pair for pair, count in counts.items() if count > 1] == []


def test_a_known_flag_is_found_below_a_section() -> None:
    assert remedy_of("train.max_tokens", ["max_tokens"]) == "--max_tokens"
    assert remedy_of("train.nothing", ["max_tokens"]) is None
    assert remedy_of("LR", ["deepspeed", "learning_rate"]) == "--learning_rate"
