#!/usr/bin/env python3
"""The acceptance path of a cloud, as its users go it. The admin's password comes by KILN_ADMIN_PASSWORD.

rig-launch.py launch VIP KERNEL RAMDISK SUBNET-PREFIX
    From an empty cloud to a guest that is ACTIVE, got its metadata and has a floating address; then the dashboard's
    log-in and a console. What is there already is used again. The last line is the floating address: whoever called
    pings it from outside.
rig-launch.py log-in VIP FILE
    The dashboard's log-in; its cookies lie in FILE.
rig-launch.py look VIP FILE
    Every service answers a question, and the dashboard still knows whose cookies these are.
rig-launch.py tokens VIP
    A token each second, as `openstack token issue` asks for it; a line of milliseconds for each that was given.
rig-launch.py upload|read VIP CONTROLLER NAME
    An image of that name goes through that controller's own glance, or comes back from it as it was.
rig-launch.py where VIP
    The compute that the guest is on.

Python's own modules only: it runs where no OpenStack client is installed.
"""
import base64
import hashlib
import html
import http.cookiejar
import json
import os
import re
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

TIMEOUT_SECS = 120     # one answer, of a cloud that shares two processors with its guests
ACTIVE_SECS = 300      # a guest's way to ACTIVE
METADATA_SECS = 300    # its boot in emulation, until it has its metadata
POLL_SECS = 2
TOKEN_SECS = 60        # one of many tokens; openstack's own client would wait for ever
REGION_PORTS = {"image": 9292, "network": 9696, "compute": 8774}
started = time.time()


def say(what):
    print("%6.1f s  %s" % (time.time() - started, what), flush=True)


def fail(what):
    sys.exit("rig-launch: " + what)


def admin(password):
    """What a token is asked for with."""
    domain = {"id": "default"}
    return {"auth": {
        "identity": {"methods": ["password"], "password": {
            "user": {"name": "admin", "domain": domain, "password": password}}},
        "scope": {"project": {"name": "admin", "domain": domain}}}}


def tokens(vip, password):
    url, data = "http://%s:5000/v3/auth/tokens" % vip, json.dumps(admin(password)).encode()
    while True:
        began = time.monotonic()
        try:
            request = urllib.request.Request(url, data, headers={"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=TOKEN_SECS) as answer:
                if answer.headers["X-Subject-Token"]:
                    print(int(time.time() * 1000), flush=True)
        except (OSError, urllib.error.URLError) as why:
            print("%s no token after %.1f s: %s" % (time.strftime("%T"), time.monotonic() - began, why), file=sys.stderr)
        time.sleep(max(0, began + 1 - time.monotonic()))


class Cloud:
    def __init__(self, vip, password):
        self.vip = vip
        body = admin(password)
        self.token, self.catalogue, self.project = None, {}, None
        answer, headers = self.ask("POST", "http://%s:5000/v3/auth/tokens" % vip, body)
        self.token, self.project = headers["X-Subject-Token"], answer["token"]["project"]["id"]
        for entry in answer["token"]["catalog"]:
            for endpoint in entry["endpoints"]:
                if endpoint["interface"] == "public":
                    self.catalogue[entry["type"]] = endpoint["url"].rstrip("/")
        for kind, port in REGION_PORTS.items():
            url = self.catalogue.get(kind) or fail("the catalogue has no public %s" % kind)
            if not url.startswith("http://%s:%d" % (vip, port)):
                fail("%s is at %s, not at the VIP" % (kind, url))

    def ask(self, method, url, body=None, headers=None, raw=None):
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, data, method=method, headers={"Content-Type": "application/json"})
        if self.token:
            request.add_header("X-Auth-Token", self.token)
        for key, value in (headers or {}).items():
            request.add_header(key, value)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECS) as answer:
                text = answer.read()
                return (json.loads(text) if text[:1] in (b"{", b"[") else text), answer.headers
        except urllib.error.HTTPError as error:
            fail("%s %s is answered %d: %s" % (method, url, error.code, error.read()[:400].decode(errors="replace")))

    def call(self, method, kind, path, body=None, **more):
        return self.ask(method, self.catalogue[kind] + path, body, **more)[0]

    def named(self, kind, path, plural, name, body):
        """The one of that name, made if it must be; and whether it was made."""
        found = [x for x in self.call("GET", kind, path)[plural] if x["name"] == name]
        if found:
            return found[0], False
        made = self.call("POST", kind, path, body)
        return (made if "id" in made else made[next(iter(made))]), True

    def image(self, name, container, disk, content, **properties):
        body = dict({"name": name, "container_format": container, "disk_format": disk, "visibility": "public"}, **properties)
        image, made = self.named("image", "/v2/images", "images", name, body)
        if made:
            headers = {"Content-Type": "application/octet-stream"}
            self.call("PUT", "image", "/v2/images/%s/file" % image["id"], headers=headers, raw=content)
        return image["id"]


def images(cloud, kernel, ramdisk):
    with open(kernel, "rb") as file:
        kernel_id = cloud.image("guest-kernel", "bare", "raw", file.read())
    with open(ramdisk, "rb") as file:
        ramdisk_id = cloud.image("guest-ramdisk", "bare", "raw", file.read())
    # The guest lives in its ramdisk; the disk is only there because a guest has one.
    return cloud.image("guest", "bare", "raw", bytes(1 << 20), kernel_id=kernel_id, ramdisk_id=ramdisk_id,
                       hw_vif_model="e1000", hw_disk_bus="ide", os_command_line="console=ttyS0 quiet")


def networks(cloud, external):
    net = lambda name, body: cloud.named("network", "/v2.0/" + name, name, next(iter(body.values()))["name"], body)[0]
    outside = net("networks", {"network": {
        "name": "outside", "router:external": True, "provider:network_type": "flat",
        "provider:physical_network": "provider"}})
    net("subnets", {"subnet": {
        "name": "outside", "network_id": outside["id"], "ip_version": 4, "cidr": external + ".0/24", "enable_dhcp": False,
        "gateway_ip": external + ".1", "allocation_pools": [{"start": external + ".100", "end": external + ".200"}]}})
    inside = net("networks", {"network": {"name": "inside"}})
    subnet = net("subnets", {"subnet": {
        "name": "inside", "network_id": inside["id"], "ip_version": 4, "cidr": "172.16.1.0/24"}})
    router = net("routers", {"router": {"name": "router", "external_gateway_info": {"network_id": outside["id"]}}})
    if not router["ha"]:
        fail("the router is not highly available")
    ports = cloud.call("GET", "network", "/v2.0/ports?device_id=" + router["id"])["ports"]
    if not any(ip["subnet_id"] == subnet["id"] for port in ports for ip in port["fixed_ips"]):
        cloud.call("PUT", "network", "/v2.0/routers/%s/add_router_interface" % router["id"], {"subnet_id": subnet["id"]})
    groups = cloud.call("GET", "network", "/v2.0/security-groups?project_id=" + cloud.project)["security_groups"]
    group = [g for g in groups if g["name"] == "default"][0]
    if not any(rule["protocol"] == "icmp" for rule in group["security_group_rules"]):
        cloud.call("POST", "network", "/v2.0/security-group-rules", {"security_group_rule": {
            "security_group_id": group["id"], "direction": "ingress", "protocol": "icmp", "ethertype": "IPv4"}})
    return outside["id"], inside["id"], router["id"]


def wait(what, seconds, look):
    end = time.time() + seconds
    while True:
        found, state = look()
        if found:
            return found
        if time.time() > end:
            fail("%s after %d s: %s" % (what, seconds, state))
        time.sleep(POLL_SECS)


def guest(cloud, image, network):
    flavors = {"flavor": {"name": "guest", "ram": 192, "vcpus": 1, "disk": 1}}
    flavor = cloud.named("compute", "/flavors", "flavors", "guest", flavors)[0]
    for failed in cloud.call("GET", "compute", "/servers?status=ERROR")["servers"]:
        cloud.call("DELETE", "compute", "/servers/" + failed["id"])
        wait("a guest in ERROR stays", ACTIVE_SECS, lambda: (not cloud.call(
            "GET", "compute", "/servers?status=ERROR")["servers"], "still there"))
    body = {"server": {"name": "guest", "imageRef": image, "flavorRef": flavor["id"], "networks": [{"uuid": network}]}}
    server = cloud.named("compute", "/servers", "servers", "guest", body)[0]["id"]

    def active():
        got = cloud.call("GET", "compute", "/servers/" + server)["server"]
        if got["status"] == "ERROR":
            fail("the guest is in ERROR: %s" % got.get("fault"))
        return got["status"] == "ACTIVE", "%s, %s" % (got["status"], got.get("OS-EXT-STS:task_state"))
    wait("the guest is not ACTIVE", ACTIVE_SECS, active)
    say("the guest is ACTIVE")

    def metadata():
        log = cloud.call("POST", "compute", "/servers/%s/action" % server, {"os-getConsoleOutput": {}})["output"]
        return re.search(r"kiln-guest: instance (i-[0-9a-f]+)", log), "its console ends %r" % log[-300:]
    say("it has its metadata: " + wait("the guest has no metadata", METADATA_SECS, metadata).group(1))
    return server


def floating(cloud, outside, server):
    port = cloud.call("GET", "network", "/v2.0/ports?device_id=" + server)["ports"][0]["id"]
    there = cloud.call("GET", "network", "/v2.0/floatingips?port_id=" + port)["floatingips"]
    made = there or [cloud.call("POST", "network", "/v2.0/floatingips", {"floatingip": {
        "floating_network_id": outside, "port_id": port}})["floatingip"]]
    return made[0]["floating_ip_address"]


def browser(jar):
    return urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))


def log_in(vip, password, jar):
    opener = browser(jar)
    page = opener.open("http://%s/auth/login/" % vip, timeout=TIMEOUT_SECS).read().decode()
    fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page))
    fields.update(username="admin", password=password)
    region = re.search(r'name="region"[^>]*value="([^"]*)"', page)
    fields["region"] = html.unescape(region.group(1)) if region else "default"
    request = urllib.request.Request("http://%s/auth/login/" % vip, urllib.parse.urlencode(fields).encode(),
                                     {"Referer": "http://%s/auth/login/" % vip})
    opener.open(request, timeout=TIMEOUT_SECS).read()
    is_logged_in(vip, jar)


def is_logged_in(vip, jar):
    page = browser(jar).open("http://%s/project/instances/" % vip, timeout=TIMEOUT_SECS).read().decode()
    if "admin" not in page or 'name="password"' in page:
        fail("the dashboard does not let the admin in")


def look(cloud, jar):
    cloud.call("GET", "image", "/v2/images")
    cloud.call("GET", "network", "/v2.0/networks")
    servers = cloud.call("GET", "compute", "/servers/detail")["servers"]
    if [s["status"] for s in servers] != ["ACTIVE"]:
        fail("nova knows %r" % [(s["name"], s["status"]) for s in servers])
    is_logged_in(cloud.vip, jar)


def console(cloud, server):
    body = {"remote_console": {"protocol": "vnc", "type": "novnc"}}
    url = cloud.call("POST", "compute", "/servers/%s/remote-consoles" % server, body,
                     headers={"X-OpenStack-Nova-API-Version": "2.6"})["remote_console"]["url"]
    parts = urllib.parse.urlsplit(url)
    if parts.hostname != cloud.vip:
        fail("the console is at %s, not at the VIP" % url)
    if b"noVNC" not in urllib.request.urlopen(url, timeout=TIMEOUT_SECS).read():
        fail("%s is not noVNC's page" % parts.path)
    path = urllib.parse.parse_qs(parts.query)["path"][0]
    with socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_SECS) as peer:
        key = base64.b64encode(os.urandom(16)).decode()
        peer.sendall(("GET /%s HTTP/1.1\r\nHost: %s\r\nOrigin: http://%s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: binary\r\n\r\n"
                      % (path.lstrip("/"), parts.netloc, parts.netloc, key)).encode())
        got = b""
        while b"RFB " not in got:
            more = peer.recv(4096)
            if not more:
                fail("the console hangs up: %r" % got[:300])
            got += more


def content(name):
    """Eight MiB that only this name has."""
    return b"".join(hashlib.sha256(b"%s %d" % (name.encode(), i)).digest() * 1024 for i in range(256))


def carry(cloud, verb, controller, name):
    # What the catalogue says is the VIP's.
    cloud.catalogue["image"] = "http://%s:9292" % controller
    if verb == "upload":
        cloud.image(name, "bare", "raw", content(name))
        return
    found = cloud.call("GET", "image", "/v2/images?name=" + name)["images"] or fail("no image %s" % name)
    if cloud.call("GET", "image", "/v2/images/%s/file" % found[0]["id"]) != content(name):
        fail("the image %s comes back changed" % name)


def launch(cloud, kernel, ramdisk, external):
    say("logged in, every service of the catalogue is at the VIP")
    image = images(cloud, kernel, ramdisk)
    say("images are there")
    outside, inside, router = networks(cloud, external)
    say("networks and a highly available router are there")
    server = guest(cloud, image, inside)
    address = floating(cloud, outside, server)
    agents = cloud.call("GET", "network", "/v2.0/routers/%s/l3-agents" % router)["agents"]
    say("the router lies on %s" % ", ".join(sorted("%s (%s)" % (a["host"], a["ha_state"]) for a in agents)))
    log_in(cloud.vip, os.environ["KILN_ADMIN_PASSWORD"], http.cookiejar.CookieJar())
    say("the dashboard lets the admin in")
    console(cloud, server)
    say("the console speaks VNC")
    print(address)


def main():
    verb, vip, *rest = sys.argv[1:]
    password = os.environ["KILN_ADMIN_PASSWORD"]
    if verb == "launch":
        launch(Cloud(vip, password), *rest)
        return
    if verb == "where":
        servers = Cloud(vip, password).call("GET", "compute", "/servers/detail")["servers"]
        print([s["OS-EXT-SRV-ATTR:host"] for s in servers if s["name"] == "guest"][0])
        return
    if verb in ("upload", "read"):
        carry(Cloud(vip, password), verb, *rest)
        return
    if verb == "tokens":
        tokens(vip, password)
    jar = http.cookiejar.MozillaCookieJar(rest[0])
    if verb == "log-in":
        log_in(vip, password, jar)
        jar.save(ignore_discard=True)
    else:
        jar.load(ignore_discard=True)
        look(Cloud(vip, password), jar)


main()
