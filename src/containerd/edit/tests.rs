use super::*;

const V2: &[&str] = &["plugins", "io.containerd.grpc.v1.cri"];

fn out(text: &str) -> String {
    let found = find(text, V2).unwrap();
    assert_eq!(found.wrong, []);
    let paths: Vec<_> = found.cuts.into_iter().map(|cut| cut.path).collect();
    let out = take_out(text, &paths).unwrap();
    let again = find(&out, V2).unwrap();
    assert!(again.legacy.is_empty(), "{out}");
    out
}

const WHOLE: &str = r#"# Our nodes.
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.9" # keep

    # Where images come from.
    [plugins."io.containerd.grpc.v1.cri".registry]
      config_path = ""

      # The old mirrors.
      [plugins."io.containerd.grpc.v1.cri".registry.mirrors]
        [plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
          endpoint = [
            "http://10.0.0.1:5000", # the first
            "https://h/p",
          ]
          # endpoint = ["http://old"]

      # Stays: it speaks of something else.

      [plugins."io.containerd.grpc.v1.cri".registry.configs."h".tls]
        ca_file = "/ca.pem"
      [plugins."io.containerd.grpc.v1.cri".registry.configs."h".auth]
        username = "u"
      [plugins."io.containerd.grpc.v1.cri".registry.configs."g".tls]
        insecure_skip_verify = true

# The end.
[debug]
  level = "info"
"#;

#[test]
fn comments_order_and_all_else_stay() {
    let found = find(WHOLE, V2).unwrap();
    assert_eq!(found.legacy.mirrors["docker.io"], ["http://10.0.0.1:5000", "https://h/p"]);
    assert_eq!(found.legacy.tls["h"].ca_file, "/ca.pem");
    let lines: Vec<_> = found.cuts.iter().map(|cut| (cut.place.name.as_str(), cut.place.line)).collect();
    assert_eq!(lines, [("registry.mirrors", 13), ("registry.configs.h.tls", 23), ("registry.configs.g", 27)]);
    assert_eq!(found.stays, [Place { name: "registry.configs.h.auth".to_owned(), line: 25 }]);
    assert_eq!(
        out(WHOLE),
        r#"# Our nodes.
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.9" # keep

    # Where images come from.
    [plugins."io.containerd.grpc.v1.cri".registry]
      config_path = ""

          # endpoint = ["http://old"]

      # Stays: it speaks of something else.

      [plugins."io.containerd.grpc.v1.cri".registry.configs."h".auth]
        username = "u"

# The end.
[debug]
  level = "info"
"#
    );
}

#[test]
fn windows_line_ends_and_a_file_without_the_last_one() {
    let text = WHOLE.replace('\n', "\r\n");
    assert_eq!(out(&text), out(WHOLE).replace('\n', "\r\n"));
    let end = "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"a.io\"]\nendpoint = [\"http://a\"]";
    assert_eq!(out(end), "version = 2\n");
}

#[test]
fn inline_and_dotted() {
    let inline = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n# r\nregistry = { mirrors = { \"a.io\" = { endpoint = [\"http://a\"] } }, config_path = \"\" } # tail\nx = 1\n";
    assert_eq!(
        out(inline),
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n# r\nregistry = { config_path = \"\" } # tail\nx = 1\n"
    );
    let dotted = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nregistry.mirrors.\"a.io\".endpoint = [\"http://a\"] # gone\nregistry.configs.h.tls.ca_file = \"/c\"\nregistry.configs.h.auth.username = \"u\"\n";
    assert_eq!(
        out(dotted),
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nregistry.configs.h.auth.username = \"u\"\n"
    );
    let configs = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  configs = { h = { tls = { ca_file = \"/c\" }, auth = { username = \"u\" } } }\n";
    assert_eq!(
        out(configs),
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  configs = { h = { auth = { username = \"u\" } } }\n"
    );
}

#[test]
fn tables_out_of_order() {
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"a.io\"]\nendpoint = []\n[debug]\nlevel = \"info\"\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"*\"]\nendpoint = [\"http://x\"]\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/x\"\n";
    assert_eq!(
        out(text),
        "version = 2\n[debug]\nlevel = \"info\"\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/x\"\n"
    );
}

#[test]
fn what_containerd_would_not_read_is_named() {
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"a.io\"]\nendpoint = \"http://a\"\nrewrite = {}\n";
    let found = find(text, V2).unwrap();
    assert_eq!(found.wrong, [Place { name: "registry.mirrors.\"a.io\".endpoint".to_owned(), line: 3 }]);
    assert_eq!(found.ignored, [Place { name: "registry.mirrors.\"a.io\".rewrite".to_owned(), line: 4 }]);
}

#[test]
fn a_hash_in_a_text_is_no_comment() {
    let text = "version = 2\n[plugins.x]\ny = \"\"\"\n# text\"\"\"\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"a.io\"]\nendpoint = []\n";
    assert_eq!(out(text), "version = 2\n[plugins.x]\ny = \"\"\"\n# text\"\"\"\n");
}
