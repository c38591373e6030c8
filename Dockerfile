# The orchestrator in a container. Two images: the default one, with Python for jobs that run inside it, and `--target slim`,
# the static binary and nothing else, for devices that only start containers beside their own.
#
# PROFILE is the profile of Cargo.toml: `quick` for people who build here, `release` for published images.
# Builds with BuildKit and with the classic builder. Where no registry can be reached: ./debug.sh base-images

FROM rust:1-slim-bookworm AS build
WORKDIR /src
# One binary that needs no library of its image. Its relocations are packed: a megabyte less.
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs" CARGO_TERM_COLOR=never
ARG PROFILE=quick
# The dependencies are a layer of their own, made anew only when they change.
COPY Cargo.toml Cargo.lock ./
RUN echo "== dependencies: about 2 min on two cores with the profile quick, 3 with release; kept until Cargo.lock changes" \
    && mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
    && cargo build --profile "$PROFILE" --locked --bin orchestrator --target "$(rustc -vV | sed -n 's/^host: //p')" \
    && rm -r src
COPY src src
RUN echo "== the orchestrator: about 1 min 30 s on two cores with the profile quick, 5 min with release" \
    && touch src/main.rs src/lib.rs \
    && cargo build --profile "$PROFILE" --locked --bin orchestrator --target "$(rustc -vV | sed -n 's/^host: //p')" \
    && mkdir -p /slim/usr/local/bin /slim/etc/ssl/certs /slim/aios/Programs \
    && cp target/*/"$PROFILE"/orchestrator /slim/usr/local/bin/ \
    && cp /etc/ssl/certs/ca-certificates.crt /slim/etc/ssl/certs/ \
    && mkdir -m 1777 /slim/tmp

# Both images start as root and become the owner of /aios/Common at once, without capabilities (src/exec/identity.rs).
FROM scratch AS slim
COPY --from=build /slim /
WORKDIR /aios
ENV AIOS_COMMON=/aios/Common AIOS_PROGRAMS=/aios/Programs AIOS_IN_CONTAINER=1 HOME=/tmp PATH=/usr/local/bin
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=10s CMD ["orchestrator", "health"]
ENTRYPOINT ["orchestrator"]

FROM debian:bookworm-slim AS full
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/dpkg.log /var/log/apt
COPY --from=build /slim/usr/local/bin/orchestrator /usr/local/bin/orchestrator
COPY --from=build /slim/aios /aios
WORKDIR /aios
ENV AIOS_COMMON=/aios/Common AIOS_PROGRAMS=/aios/Programs AIOS_IN_CONTAINER=1 HOME=/tmp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=10s CMD ["orchestrator", "health"]
ENTRYPOINT ["orchestrator"]
