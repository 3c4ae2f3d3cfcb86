# throng in a container.
#
#   docker build --tag throng .
#   docker run --publish 7070:7070 --ulimit nofile=1100000:1100000 --stop-timeout 20 throng
#
# The configuration is in variables (THRONG_LIMITS_CONNECTIONS_PER_IP_MAX=100, REDIS_URL=…) or in a file at /etc/throng/throng.toml. Each
# connection takes a descriptor: without --ulimit, the daemon's limit is the bound. Sysctls of the network are those of the container's namespace
# (--sysctl net.core.somaxconn=65535 …); with --network host they are the machine's, and the kernel forwards nothing. The control port is for this
# container only; for a Prometheus outside it, --env THRONG_CONTROL=0.0.0.0:7071 and a network that nobody else is in.
# The stop time-out has to be longer than drain.notice_ms and drain.timeout_ms together.

FROM rust:1.95-bookworm AS build
WORKDIR /throng
COPY . .
RUN cargo build --release --locked --workspace --bins && strip target/release/throng target/release/throng-load

FROM debian:bookworm-slim
# Whom to trust by https: key sets, a backend. Debian keeps no old versions of it to name one.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /throng/target/release/throng /throng/target/release/throng-load /usr/bin/
COPY packaging/debian/throng.toml /etc/throng/throng.toml
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/throng/
# A number, by which orchestrators see that it is not root.
USER 65532:65532
EXPOSE 7070
STOPSIGNAL SIGTERM
# By the control port, which speaks plain HTTP whatever clients speak. bash is there, curl is not.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/7071 && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && read -r -t 2 _ status _ <&3 && [[ $status == 200 ]]"]
ENTRYPOINT ["/usr/bin/throng"]
CMD ["serve", "--config", "/etc/throng/throng.toml"]
