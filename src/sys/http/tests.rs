use super::*;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

/// A server that answers its connections one after the other with those bytes, each in one write
/// after the request was read whole, and hands out the requests that it saw.
fn serve(answers: Vec<String>) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = mpsc::channel();
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = sender.send(read_request(&mut stream));
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (url, requests)
}

fn read_request(stream: &mut impl Read) -> String {
    let mut reader = BufReader::new(stream);
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return text;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        let end = line == "\r\n";
        text.push_str(&line);
        if end {
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap_or_default();
            text.push_str(&String::from_utf8_lossy(&body));
            return text;
        }
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn partial(start: usize, total: usize, body: &str) -> String {
    let length = body.len();
    let end = start + length - 1;
    format!("HTTP/1.1 206 P\r\nContent-Range: bytes {start}-{end}/{total}\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn quick() -> Client {
    let short = Duration::from_millis(300);
    Client::new().timeouts(Timeouts { connect: short, idle: short })
}

/// Downloads from `from` of one answer: what was written, and how it ended.
fn download(answer: &str, from: u64, max: u64) -> (String, Result<Download>) {
    let (url, _requests) = serve(vec![answer.to_string()]);
    let mut body = Vec::new();
    let result = quick().download(&Get { url: &url, headers: &[], from, max }, &mut body, &mut |_, _| ());
    (String::from_utf8(body).unwrap(), result)
}

fn error<T: std::fmt::Debug>(result: Result<T>) -> String {
    format!("{:#}", result.unwrap_err())
}

#[test]
fn a_request_carries_its_parts_and_any_status_is_an_answer() {
    let (url, requests) = serve(vec!["HTTP/1.1 404 Not Found\r\nX-A: b\r\nContent-Length: 4\r\n\r\ngone".into()]);
    let body = Body::Bytes(b"question".to_vec());
    let response = Client::new().request("POST", &format!("{url}/a/b?c=d"), &[("X-Q", "1")], body).unwrap();
    assert_eq!((response.status, response.header("x-a"), &response.body[..]), (404, Some("b"), &b"gone"[..]));
    let request = requests.recv().unwrap();
    assert!(request.starts_with("POST /a/b?c=d HTTP/1.1\r\n") && request.ends_with("\r\n\r\nquestion"), "{request}");
    assert!(request.contains(&format!("host: {}\r\n", &url["http://".len()..])), "{request}");
    let error = response.success("POST", "x").unwrap_err();
    assert_eq!((status_of(&error), format!("{error}").as_str()), (Some(404), "POST x was answered 404: gone"));
}

#[test]
fn downloads_start_where_the_caller_stopped_whatever_the_server_does() {
    let full = "0123456789";
    // (label, answer, from, written, error)
    let rows = [
        ("whole", ok(full), 0, full, None),
        ("range", partial(4, 10, "456789"), 4, "456789", None),
        ("range ignored", ok(full), 4, "456789", None),
        ("earlier range", partial(2, 10, "23456789"), 4, "456789", None),
        (
            "nothing left",
            "HTTP/1.1 416 R\r\nContent-Range: bytes */10\r\nContent-Length: 0\r\n\r\n".into(),
            10,
            "",
            None,
        ),
        (
            "past the end",
            "HTTP/1.1 416 R\r\nContent-Range: bytes */9\r\nContent-Length: 0\r\n\r\n".into(),
            10,
            "",
            Some("416"),
        ),
        ("later range", partial(6, 10, "6789"), 4, "", Some("another range")),
        ("no range said", "HTTP/1.1 206 P\r\nContent-Length: 6\r\n\r\n456789".into(), 4, "", Some("another range")),
        ("shorter than before", ok("012"), 4, "", Some("body ended")),
        ("cut", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234".into(), 0, "01234", Some("reading the body")),
        ("range shorter than said", partial(4, 10, "45"), 4, "45", Some("body ended after 6 of 10")),
        ("refused", "HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n".into(), 0, "", Some("503")),
        ("garbage", "SSH-2.0-x\r\n\r\n".into(), 0, "", Some("waiting for the answer")),
        ("nothing", String::new(), 0, "", Some("waiting for the answer")),
    ];
    for (label, answer, from, written, expected) in rows {
        let (body, result) = download(&answer, from, 100);
        assert_eq!(body, written, "{label}");
        match expected {
            None => assert_eq!(result.unwrap().total, 10, "{label}"),
            Some(part) => {
                let error = error(result);
                assert!(error.contains(part), "{label}: {error}");
            }
        }
    }
}

#[test]
fn a_body_larger_than_expected_is_refused() {
    assert!(error(download(&ok("0123456789"), 0, 9).1).contains("larger than the 9"));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n";
    assert!(error(download(chunked, 0, 9).1).contains("larger than 9"));
    assert_eq!(download(chunked, 0, 10).1.unwrap().total, 10);
}

#[test]
fn a_refusal_says_when_to_come_back() {
    let (_, result) = download("HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n", 0, 9);
    let error = result.unwrap_err();
    let status = error.downcast_ref::<StatusError>().unwrap();
    assert_eq!((status.status, status.retry_after_secs), (503, Some(7)));
}

#[test]
fn heads_are_bounded() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(2 * HEAD_MAX_BYTES));
    assert!(download(&long, 0, 9).1.is_err());
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: a\r\n".repeat(HEADERS_MAX + 1));
    assert!(download(&many, 0, 9).1.is_err());
}

#[test]
fn silence_ends_a_call() {
    // Accepts by the kernel's backlog and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let error_text = error(quick().request("GET", &url, &[], Body::Empty));
    assert!(error_text.contains("nothing moved for 300ms"), "{error_text}");
    let tls = url.replace("http", "https");
    let error_text = error(with_roots(rustls::RootCertStore::empty()).request("GET", &tls, &[], Body::Empty));
    assert!(error_text.contains("no connection within"), "{error_text}");
    let gone = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    assert!(error(quick().request("GET", &format!("http://{gone}"), &[], Body::Empty)).contains("refused"));
}

#[test]
fn a_slow_body_may_take_longer_than_the_idle_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").unwrap();
        for byte in b"01234" {
            thread::sleep(Duration::from_millis(120));
            stream.write_all(&[*byte]).unwrap();
        }
    });
    let mut seen = Vec::new();
    let progress = &mut |done, total| seen.push((done, total));
    quick().get_to_writer(&url, 0, &mut Vec::new(), progress).unwrap();
    assert_eq!(seen.last(), Some(&(5, Some(5))));
}

#[test]
fn redirects_are_followed_a_few_times_and_keep_credentials_at_home() {
    let moved = |to: &str| format!("HTTP/1.1 307 M\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
    let (elsewhere, strangers) = serve(vec![ok("there")]);
    let (url, requests) = serve(vec![moved("b?x=1"), moved(&format!("{elsewhere}/c#part"))]);
    let headers = [("authorization", "Basic c2VjcmV0")];
    let response = Client::new().request("GET", &format!("{url}/d/a"), &headers, Body::Empty).unwrap();
    assert_eq!(response.body, b"there");
    assert!(requests.recv().unwrap().contains("authorization"));
    let second = requests.recv().unwrap();
    assert!(second.starts_with("GET /d/b?x=1 ") && second.contains("authorization"), "{second}");
    let third = strangers.recv().unwrap();
    assert!(third.starts_with("GET /c ") && !third.contains("authorization"), "{third}");

    let (url, _requests) = serve(vec![moved("/again"); 9]);
    assert!(error(Client::new().request("GET", &url, &[], Body::Empty)).contains("more than 5 redirects"));
    let (url, _requests) = serve(vec![moved("/again"); 2]);
    assert_eq!(Client::new().request("PUT", &url, &[], Body::Empty).unwrap().status, 307, "not repeated");
    assert_eq!(Client::new().without_redirects().request("GET", &url, &[], Body::Empty).unwrap().status, 307);
    let (url, _requests) = serve(vec![moved("ftp://h/x")]);
    assert!(error(Client::new().request("GET", &url, &[], Body::Empty)).contains("neither http nor https"));
}

#[test]
fn a_file_is_sent_whole_or_not_at_all() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "content").unwrap();
    let (url, requests) = serve(vec![ok("")]);
    Client::new().request("PUT", &url, &[], Body::File(file.path(), 7)).unwrap();
    let request = requests.recv().unwrap();
    assert!(request.contains("content-length: 7\r\n") && request.ends_with("\r\n\r\ncontent"), "{request}");
    let (url, _requests) = serve(vec![ok("")]);
    let shorter = quick().request("PUT", &url, &[], Body::File(file.path(), 8));
    assert!(error(shorter).contains("became shorter"));
}

#[test]
fn a_unix_socket_is_spoken_to_by_path() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kiln.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let request = read_request(&mut stream);
        stream.write_all(ok("hello").as_bytes()).unwrap();
        request
    });
    let response = Client::unix(&socket).request("GET", "/v1/x?y=1", &[], Body::Empty).unwrap();
    assert_eq!(response.body, b"hello");
    assert!(server.join().unwrap().starts_with("GET /v1/x?y=1 HTTP/1.1\r\nhost: localhost\r\n"));
    let missing = Client::unix(dir.path().join("none")).request("GET", "/", &[], Body::Empty);
    assert!(error(missing).contains("none"));
}

fn with_roots(roots: rustls::RootCertStore) -> Client {
    let config = tls_builder().unwrap().with_root_certificates(roots).with_no_client_auth();
    let short = Duration::from_millis(300);
    Client::with_tls(Arc::new(config)).timeouts(Timeouts { connect: short, idle: short })
}

#[test]
fn https_trusts_only_what_it_was_given() {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(Arc::new(config.clone())).unwrap();
            let mut stream = rustls::StreamOwned::<_, TcpStream>::new(connection, stream.unwrap());
            if !read_request(&mut stream).is_empty() {
                let _ = stream.write_all(ok("safe").as_bytes());
            }
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    assert_eq!(with_roots(roots).request("GET", &url, &[], Body::Empty).unwrap().body, b"safe");
    let stranger = with_roots(rustls::RootCertStore::empty()).request("GET", &url, &[], Body::Empty);
    assert!(error(stranger).contains("certificate"));
}

#[test]
fn urls_are_taken_apart_strictly() {
    let rows = [
        ("http://h/a?b", Some("http://h/a?b")),
        ("https://h:8443", Some("https://h:8443/")),
        ("http://[::1]:80/x", Some("http://[::1]/x")),
        ("https://user:pw@h/", None),
        ("ftp://h/", None),
        ("/path", None),
        ("http:///x", None),
        ("http://h/a b", None),
        ("", None),
    ];
    for (url, expected) in rows {
        let parsed = Target::parse(url, None);
        assert_eq!(parsed.as_ref().ok().map(Target::url).as_deref(), expected, "{url}");
        assert!(!format!("{:?}", parsed).contains("pw"), "no credential in an error");
    }
    assert!(same_origin("http://h/a", "http://h:80/b") && !same_origin("http://h/", "https://h/"));
    assert_eq!(join("https://h/a/b", "//g/c").unwrap(), "https://g/c");
    assert!(parse_headers(&[("a", "b\r\nc: d")]).is_err());
}

proptest::proptest! {
    #[test]
    fn hostile_answers_end_in_an_error_or_a_body(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), text in "HTTP/1\\.1 [0-9]{3} \r\n([a-zA-Z-]{1,16}: [a-z0-9/=*-]{0,20}\r\n){0,4}\r\n[a-f0-9\r\n]{0,40}") {
        for answer in [bytes, text.into_bytes()] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                read_request(&mut stream);
                let _ = stream.write_all(&answer);
            });
            let _ = quick().without_redirects().request("GET", &url, &[], Body::Empty);
            server.join().unwrap();
        }
    }
}
