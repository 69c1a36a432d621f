"""Readers of operator tables: units, conventions and errors, on small files written here."""

import numpy as np
import pytest

from llmlab.harness.calibration.from_tables import origin, primary, profile_name
from llmlab.harness.calibration.tables import COLUMNS, read_table, read_tables, tables_of, tidy
from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import load_device_sheet


def written(folder, name, *lines):
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def test_all_reduce_sizes_are_elements_and_times_milliseconds(tmp_path):
    path = written(
        tmp_path,
        "h100_sxm_vllm1.0_custom_allreduce_perf.csv",
        "kernel_source,allreduce_dtype,num_gpus,message_size,latency_ms,backend",
        "a,bfloat16,4,1024,0.5,vllm_graph",
        "a,bfloat16,4,1024,0.9,vllm_eager",
    )
    frame = read_table(path)
    assert tuple(frame.columns) == COLUMNS
    assert frame.message_bytes.tolist() == [2048, 2048]
    assert frame.seconds.tolist() == pytest.approx([0.5e-3, 0.9e-3])
    assert frame.operator.tolist() == ["custom", "custom_eager"]


def test_nccl_names_are_the_fields(tmp_path):
    path = written(
        tmp_path,
        "h100_sxm_nccl1_nccl_perf.csv",
        "op_name,kernel_source,nccl_dtype,num_gpus,message_size,latency_ms",
        "alltoall,NCCL,half,8,256,0.01",
    )
    (row,) = read_table(path).to_dict("records")
    assert (row["kind"], row["operator"], row["ranks"], row["message_bytes"]) == ("all_to_all", "nccl", 8, 512)


def test_a_generation_step_attends_to_the_cache_and_itself(tmp_path):
    header = "kernel_source,batch_size,isl,num_heads,num_key_value_heads,head_dim,attn_dtype,kv_cache_dtype,step,latency_ms"
    decode = written(tmp_path, "h100_sxm_x_generation_attention_perf.csv", header, "fa,4,1,32,8,128,bfloat16,fp8,511,0.02")
    (row,) = read_table(decode).to_dict("records")
    assert (row["kind"], row["batch"], row["context_tokens"], row["kv_dtype"]) == ("attention_decode", 4, 512, "fp8")
    prefill = written(
        tmp_path,
        "h100_sxm_x_context_attention_perf.csv",
        header,
        "fa,2,256,32,8,128,bfloat16,bfloat16,0,0.02",
        "fa,2,1,32,8,128,bfloat16,bfloat16,0,0.01",
    )
    long, single = read_table(prefill).to_dict("records")
    assert (long["kind"], long["new_tokens"], long["context_tokens"]) == ("attention_prefill", 256, 0)
    assert (single["kind"], single["context_tokens"]) == ("attention_decode", 1)


def test_experts_are_split_by_tensor_parallelism_and_odd_routers_are_left_out(tmp_path):
    path = written(
        tmp_path,
        "h100_sxm_x_moe_perf.csv",
        "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,latency_ms",
        "bfloat16,16,2048,768,8,128,2,1,power_law_1.2,0.1",
        "bfloat16,16,2048,768,8,128,2,1,balanced,0.1",
        "bfloat16,16,2048,768,8,128,2,4,power_law_1.2,0.1",
        "bfloat16,16,2048,768,8,128,32,1,power_law_1.2,0.1",
    )
    row, apart = read_table(path).to_dict("records")
    assert (row["kind"], row["tokens"], row["inter"], row["experts"], row["experts_per_token"]) == ("moe", 16, 384, 128, 8)
    assert (apart["kind"], apart["experts"], apart["experts_per_token"]) == ("moe_parallel", 32, 2)
    assert (apart["handled"], apart["ranks"], apart["matrices"]) == (8, 4, 3)


def test_latent_attention_says_which_projections_were_timed_with_it(tmp_path):
    header = "kernel_source,mla_dtype,kv_cache_dtype,gemm_type,num_heads,batch_size,isl,tp_size,step,latency_ms"
    path = written(tmp_path, "h100_sxm_x_mla_generation_module_perf.csv", header, "F,bfloat16,fp8,fp8_block,16,4,1,1,1023,0.2")
    (row,) = read_table(path).to_dict("records")
    assert (row["kind"], row["context_tokens"], row["operator"]) == ("attention_decode_mla", 1024, "fp8_block")
    path = written(tmp_path, "h100_sxm_x_mla_context_module_perf.csv", header, "F,bfloat16,fp8,fp8_block,16,4,512,1,0,0.2")
    (row,) = read_table(path).to_dict("records")
    assert (row["kind"], row["new_tokens"], row["latent_width"]) == ("attention_prefill_mla", 512, 576)


VIDUR = "n_head,n_kv_head,n_embd,n_expanded_embd,vocab_size,use_gated_mlp,num_tokens,num_tensor_parallel_workers"


def test_vidur_layers_become_products_and_movements(tmp_path):
    path = written(
        tmp_path,
        "mlp_h100_Some-Model.csv",
        f"input_layernorm_ms,attn_pre_proj_ms,attn_post_proj_ms,mlp_up_proj_ms,mlp_down_proj_ms,add_ms,{VIDUR}",
        "0.1,1,2,3,4,,64,8,8192,28672,32000,True,16,4",
    )
    frame = read_table(path).set_index("operator")
    assert frame.loc["attn_pre_proj", ["m", "n", "k"]].tolist() == [16, (16 + 4) * 128, 8192]
    assert frame.loc["attn_post_proj", ["m", "n", "k"]].tolist() == [16, 8192, 2048]
    assert frame.loc["mlp_up_proj", ["m", "n", "k"]].tolist() == [16, 2 * 7168, 8192]
    assert frame.loc["mlp_down_proj", ["n", "k", "seconds"]].tolist() == [8192, 7168, 4e-3]
    assert frame.loc["norm", "moved_bytes"] == 2 * 2 * 8192 * 16
    assert "add" not in frame.index  # nothing measured


def test_vidur_network_keeps_one_node(tmp_path):
    header = "time_stats.all_reduce.median,rank,num_workers,size,collective,devices_per_node,max_devices_per_node"
    path = written(
        tmp_path, "net_h100_dgx_all_reduce.csv", header, "0.05,0,8,2048,all_reduce,8,8", "0.5,0,16,2048,all_reduce,8,8"
    )
    (row,) = read_table(path).to_dict("records")
    assert (row["ranks"], row["message_bytes"], row["seconds"]) == (8, 2048, pytest.approx(5e-5))


def test_blis_products_are_eight_bit_and_its_first_decode_row_is_a_warm_up(tmp_path):
    gemm = written(tmp_path, "h100_gemm_blis.csv", "m,k,n,latency_us", "8,2048,6144,9.0")
    assert read_table(gemm)[["dtype", "seconds"]].to_numpy().tolist() == [["fp8", pytest.approx(9e-6)]]
    header = "n_heads,n_kv_heads,head_dim,tp,dtype,kv_dtype,batch_size,kv_len,latency_us,source"
    rows = [f"32,8,128,2,bf16,bf16,{batch},256,{us},one" for batch, us in ((1, 99), (1, 20), (4, 25))]
    decode = written(tmp_path, "h100_mha_decode_blis.csv", header, *rows)
    frame = read_table(decode)
    assert frame.seconds.tolist() == pytest.approx([20e-6, 25e-6])
    assert frame.heads.tolist() == [16, 16]


def test_llmservingsim_layers_follow_the_model(tmp_path):
    dense = written(
        tmp_path,
        "llmservingsim_profile_dense.csv",
        "gpu,model,tp,layer,tokens,time_us",
        "RTX4090,meta-llama/Llama-3.1-8B,tp2,qkv_proj,16,50",
        "OTHER,meta-llama/Llama-3.1-8B,tp1,down_proj,16,60",
        "RTX4090,meta-llama/Llama-3.1-8B,tp1,layernorm,16,3",
    )
    frame = read_table(dense).set_index("operator")
    assert frame.loc["qkv_proj", ["m", "n", "k"]].tolist() == [16, (16 + 8) * 128, 4096]
    assert frame.loc["norm", "moved_bytes"] == 4 * 2 * 4096 * 16
    written(
        tmp_path,
        "llmservingsim_profile_attention.csv",
        "gpu,model,tp,prefill_chunk,kv_prefill,n_decode,kv_decode,time_us",
        "RTX4090,meta-llama/Llama-3.1-8B,tp1,0,0,4,100,20",
        "RTX4090,meta-llama/Llama-3.1-8B,tp1,64,32,0,0,30",
        "RTX4090,meta-llama/Llama-3.1-8B,tp1,64,32,4,100,40",
    )
    attention = read_table(tmp_path / "llmservingsim_profile_attention.csv")
    assert attention.kind.tolist() == ["attention_decode", "attention_prefill"]  # the mixed step is left out
    assert attention.context_tokens.tolist() == [101, 32]
    whole = read_tables(tmp_path, "rtx_4090")
    assert set(whole.source.str.split(" ").str[1]) == {"RTX4090"}
    assert len(whole) == 4


GEMM = "gemm_dtype,m,n,k,latency_ms"


@pytest.mark.parametrize(
    ("header", "row", "named"),
    [
        (GEMM, "bfloat16,1,2,3,0", "seconds"),
        (GEMM, "bfloat16,1,2,3,nan", "seconds"),
        (GEMM, "bfloat16,-1,2,3,0.1", "m=-1"),
        (GEMM, "float7,1,2,3,0.1", "float7"),
        ("gemm_dtype,m,n,latency_ms", "bfloat16,1,2,0.1", "k=None: missing column"),
    ],
)
def test_a_table_that_cannot_be_is_refused(tmp_path, header, row, named):
    path = written(tmp_path, "h100_sxm_x_gemm_perf.csv", header, row)
    with pytest.raises(InputError, match=named):
        read_table(path)


def test_unknown_formats_absent_files_and_truncated_archives_are_named(tmp_path):
    with pytest.raises(InputError, match="no known table format"):
        read_table(written(tmp_path, "notes.csv", "a,b", "1,2"))
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "h100_sxm_x_gemm_perf.csv")
    (tmp_path / "h100_sxm_x_gemm_perf.csv.gz").write_bytes(b"\x1f\x8b\x08\x00cut")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "h100_sxm_x_gemm_perf.csv.gz")
    with pytest.raises(InputError, match="no such folder"):
        tables_of(tmp_path / "absent", "h100_sxm")
    with pytest.raises(InputError, match="holds no table of a100_sxm"):
        tables_of(tmp_path, "a100_sxm")
    with pytest.raises(InputError, match="no tables known"):
        tables_of(tmp_path, "abacus")


def test_the_densest_origin_is_fitted_and_the_others_are_a_check():
    frame = tidy(
        {
            "kind": ["gemm", "gemm", "memory"],
            "dtype": "bfloat16",
            "seconds": [1.0, 1.0, 1.0],
            "source": ["h100_sxm_x_gemm_perf", "mlp_h100_x", "mlp_h100_x"],
        }
    )
    assert primary(frame).tolist() == [True, False, True]
    assert origin("mlp_h100_x") == ("microsoft/vidur", "MIT")
    assert profile_name(load_device_sheet("h200")) == "h200_sxm"
    with pytest.raises(InputError, match="no operator tables"):
        profile_name(load_device_sheet("b200"))


def test_a_tidy_frame_repeats_scalars_and_leaves_the_rest_empty():
    frame = tidy({"kind": "gemm", "m": np.array([1, 2]), "seconds": [1, 2]})
    assert frame.kind.tolist() == ["gemm", "gemm"]
    assert frame.batch.isna().all()
    assert frame.seconds.dtype == float
