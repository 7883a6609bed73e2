"""The Python interface: figures of models as values, as rows, and as the tables of the commands."""

import llmbench as lb

llama = lb.load("llama3-8b")
print(f"{llama.name} has {lb.params(llama).value.total:,} parameters")

# What does the KV cache of this model cost with other numbers of KV heads?
for heads in (32, 8, 1):
    variant = lb.load(llama, {"num_key_value_heads": heads})
    print(f"{heads:2} KV heads: {lb.kv_cache(variant, seq=32768).value.bytes_total / 2**30:5.2f} GiB")

# The largest micro-batch that fits in 80 GiB with full recomputation and an 8-bit optimizer
for batch in range(1, 9):
    needed = lb.memory(llama, batch=batch, recompute="full", optimizer="adamw-8bit").value.needed_bytes
    if needed > 80 * 2**30:
        print(f"micro-batch {batch}: {needed / 2**30:.1f} GiB is too much")
        break

# On how many GPUs of each kind does a 70B model serve 16 users, with fp8 weights?
for row in lb.fit("llama3.3-70b", device=["h100", "h200"], gpus=2, users=16, weights="fp8").values:
    print(f"{row.gpus} x {row.device.name}: {row.fit.capacity} users of 8,192 tokens")

# One flat dict per model: pandas.DataFrame(rows) makes a table of them.
rows = lb.flops("llama3-8b", "mixtral-8x7b", phase="decode", seq=8192).rows
print([(row["model"], row["flops_per_token"]) for row in rows])

# An answer prints the table of the command. A notebook shows the same table as HTML.
print(lb.kv_cache("llama3-8b", "deepseek-v3", seq=32768))
