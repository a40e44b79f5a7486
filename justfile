# A thin menu: each line is what CI runs, too.

# What a push needs.
check:
    cargo fmt --all -- --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# All tests, or those that match a filter.
test *filter:
    cargo test --workspace {{filter}}

# Look at and accept changed snapshots.
golden:
    INSTA_UPDATE=always cargo test -p logdrive --test config_errors

# Fuzz one target: json, access_log, syslog, config, buffer, bulk, lumberjack, forward, relp, exposition or octet_counting. Needs cargo-fuzz and a
# nightly compiler.
fuzz target *args:
    cargo +nightly fuzz run {{target}} --fuzz-dir benches/fuzz {{args}}

# How fast lines become columns, beside simd-json's tape and a newline scan.
bench-decode:
    cargo bench -p logdrive-benches --bench decode

# That the product compiles without warnings with none of its features, and with each alone. Takes many minutes.
features:
    #!/usr/bin/env bash
    set -euo pipefail
    export RUSTFLAGS="-D warnings" CARGO_TARGET_DIR=target/features
    cargo check -p logdrive --no-default-features
    for feature in $(sed -n '/^\[features\]/,/^\[dep/s/^\([a-z]*\) = .*/\1/p' pipeline/Cargo.toml | grep -v default); do
        cargo check -p logdrive --no-default-features --features "$feature"
    done

# Instruction counts of the hot kernels against the committed ones; `just guard --update` commits to new ones.
guard *args:
    cargo run --release -p logdrive-benches --bin guard -- {{args}}

# The demo.
demo:
    cargo run --release -- run examples/shop.yaml

# What CI runs.
ci:
    .ci/run

# Logdrive beside its peers, on this machine: writes docs/benchmarks.md.
compare *args:
    cargo run --release -p logdrive-compare -- run {{args}}

# Where the time of a workload goes, as a flame graph and as shares: `just profile W1`. Needs linux-perf.
profile workload *args:
    cargo run --release -p logdrive-compare -- profile {{workload}} {{args}}

# What an event costs as something grows: writes docs/scaling.md and its plots.
scaling *args:
    cargo run --release -p logdrive-compare -- scaling {{args}}

# Three times what the far end takes, for ten minutes: memory stays bounded, and nothing acknowledged is lost.
overload *args:
    cargo run --release -p logdrive-compare -- overload {{args}}

# How long a pipeline takes to come back against the size of its state: writes the table in docs/checkpoints.md.
recovery:
    LOGDRIVE_UPDATE_DOCS=1 cargo test --release -p logdrive --test recovery -- --ignored --nocapture

# Nexmark as views, on one core, beside DataFusion, Flink, Pathway and Bytewax: writes docs/nexmark.md.
nexmark *args:
    cargo run --release -p logdrive-nexmark -- {{args}}
