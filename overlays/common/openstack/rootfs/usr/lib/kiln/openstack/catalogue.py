"""catalogue.py [--check] FILE: what one service needs in keystone.

Its user with the role admin on the project "service", its entry and its three endpoints. Looks first and
makes only what is missing, so that it may run again and beside another service's. With --check it changes
nothing and exits 1 when something is missing. Plain HTTP and nothing imported that is not Python's own (2.7
or 3): a client's imports would take seconds.
"""
import json
import sys

try:
    from urllib.error import HTTPError, URLError
    from urllib.parse import urlencode
    from urllib.request import Request, urlopen
except ImportError:
    from urllib import urlencode
    from urllib2 import HTTPError, Request, URLError, urlopen

# keystone answers within a second; on a machine that has just been started it may take many.
TIMEOUT_SECS = 60
INTERFACES = ("public", "internal", "admin")


class Missing(Exception):
    """--check found something that is not there."""


class Keystone(object):
    def __init__(self, url, check):
        self.url, self.check, self.token = url, check, None

    def ask(self, method, path, body=None):
        """The status, and the answer with its headers' token."""
        request = Request(self.url + path, json.dumps(body).encode() if body is not None else None)
        request.get_method = lambda: method
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("X-Auth-Token", self.token)
        try:
            answer = urlopen(request, timeout=TIMEOUT_SECS)
        except HTTPError as error:
            return error.code, {}, None
        text = answer.read().decode()
        return answer.getcode(), json.loads(text) if text else {}, answer.headers.get("X-Subject-Token")

    def want(self, method, path, body=None):
        status, answer, _ = self.ask(method, path, body)
        if status >= 300:
            raise RuntimeError("%s %s is answered %d" % (method, path, status))
        return answer

    def log_in(self, user, password, project):
        """The token, or None when name and password do not fit."""
        domain = {"id": "default"}
        body = {"auth": {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": user, "password": password, "domain": domain}}},
            "scope": {"project": {"name": project, "domain": domain}}}}
        status, _, token = self.ask("POST", "/auth/tokens", body)
        if status not in (201, 401):
            raise RuntimeError("the log-in of %s is answered %d" % (user, status))
        return token

    def find(self, kind, **by):
        return self.want("GET", "/%s?%s" % (kind, urlencode(by)))[kind]

    def made(self, kind, by, more=None):
        """The id of the one of this kind and name, made if it must be."""
        for _ in range(2):
            found = self.find(kind, **by)
            if found:
                return found[0]["id"]
            if self.check:
                raise Missing("no %s %s" % (kind, by))
            status, answer, _ = self.ask("POST", "/" + kind, {kind[:-1]: dict(by, **(more or {}))})
            if status == 201:
                return answer[kind[:-1]]["id"]
            if status != 409:  # made by another node at this very moment
                raise RuntimeError("making %s %s is answered %d" % (kind, by, status))
        raise RuntimeError("%s %s exists, but is not found" % (kind, by))

    def change(self, why, method, path, body=None):
        if self.check:
            raise Missing(why)
        self.want(method, path, body)


def settle(keystone, wanted):
    user, password, region = wanted["user"], wanted["password"], wanted["region"]
    project = keystone.made("projects", {"name": "service", "domain_id": "default"})
    role = keystone.find("roles", name="admin")[0]["id"]
    by = {"name": user, "domain_id": "default"}
    user_id = keystone.made("users", by, {"password": password})
    grant = "/projects/%s/users/%s/roles/%s" % (project, user_id, role)
    if keystone.ask("HEAD", grant)[0] != 204:
        keystone.change("%s is no admin of service" % user, "PUT", grant)
    if not keystone.log_in(user, password, "service"):
        keystone.change("%s has another password" % user, "PATCH", "/users/" + user_id, {"user": {"password": password}})
    for service in wanted["services"]:
        service_id = keystone.made("services", {"type": service["type"], "name": service["name"]})
        there = keystone.find("endpoints", service_id=service_id)
        for interface in INTERFACES:
            endpoint = {"interface": interface, "region_id": region, "service_id": service_id, "url": service["url"]}
            same = [e for e in there if (e["interface"], e["region_id"]) == (interface, region)]
            what = "%s's %s endpoint" % (service["name"], interface)
            if not same:
                keystone.change("no " + what, "POST", "/endpoints", {"endpoint": endpoint})
            elif same[0]["url"] != service["url"]:
                keystone.change(what + " is another", "PATCH", "/endpoints/" + same[0]["id"], {"endpoint": endpoint})


def main(arguments):
    check = arguments[:1] == ["--check"]
    with open(arguments[-1]) as file:
        wanted = json.load(file)
    keystone = Keystone(wanted["keystone"], check)
    try:
        keystone.token = keystone.log_in("admin", wanted["admin"], "admin")
        if not keystone.token:
            raise RuntimeError("keystone does not take the admin's password")
        settle(keystone, wanted)
    except Missing as error:
        print(error)
        return 1
    except (RuntimeError, URLError, IOError) as error:
        print("keystone at %s: %s" % (wanted["keystone"], error))
        return 75 if check else 1
    print("user %s, services %s" % (wanted["user"], ", ".join(s["name"] for s in wanted["services"])))
    return 0


sys.exit(main(sys.argv[1:]))
