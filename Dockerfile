# The orchestrator in a container. Two images: the default one, with Python for jobs that run inside it, and `--target slim`,
# the static binary and nothing else, for devices that only start containers beside their own.
#
# Builds with BuildKit and with the classic builder. Where no registry can be reached: ./debug.sh base-images

FROM rust:1-slim-bookworm AS build
WORKDIR /src
# One binary that needs no library of its image. Its relocations are packed: a megabyte less.
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs" CARGO_TERM_COLOR=never
# The dependencies are a layer of their own, made anew only when they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
    && cargo build --release --locked --bin orchestrator --target "$(rustc -vV | sed -n 's/^host: //p')" \
    && rm -r src
COPY src src
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked --bin orchestrator --target "$(rustc -vV | sed -n 's/^host: //p')" \
    && mkdir -p /slim/usr/local/bin /slim/etc/ssl/certs /slim/aios \
    && cp target/*/release/orchestrator /slim/usr/local/bin/ \
    && cp /etc/ssl/certs/ca-certificates.crt /slim/etc/ssl/certs/ \
    && mkdir -m 1777 /slim/tmp

FROM scratch AS slim
COPY --from=build /slim /
ARG AIOS_UID=1000
ARG AIOS_GID=1000
USER ${AIOS_UID}:${AIOS_GID}
WORKDIR /aios
ENV AIOS_COMMON=/aios/Common AIOS_PROGRAMS=/aios/Programs HOME=/tmp PATH=/usr/local/bin
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=10s CMD ["orchestrator", "health"]
ENTRYPOINT ["orchestrator"]

FROM debian:bookworm-slim AS full
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/dpkg.log /var/log/apt
COPY --from=build /slim/usr/local/bin/orchestrator /usr/local/bin/orchestrator
ARG AIOS_UID=1000
ARG AIOS_GID=1000
USER ${AIOS_UID}:${AIOS_GID}
WORKDIR /aios
ENV AIOS_COMMON=/aios/Common AIOS_PROGRAMS=/aios/Programs HOME=/tmp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=10s CMD ["orchestrator", "health"]
ENTRYPOINT ["orchestrator"]
