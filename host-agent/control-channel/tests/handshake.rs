//! Handshakes in memory: who is let in, and what both ends say of whom they are not.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use lunar_control_channel::make::{Authority, Validity, make};
use lunar_control_channel::rustls::server::ServerConnection;
use lunar_control_channel::{Identity, Role};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What one end says: nothing when all is well.
type Said = Option<String>;

/// Carries bytes between both ends until neither has more to say; what the agent and the card say then.
fn meet(agent: &Identity, card: &Identity) -> (Said, Said) {
    let (configuration, agents_witness) = agent.agent().unwrap();
    let mut agent = ServerConnection::new(configuration).unwrap();
    let (mut card, cards_witness) = card.card().unwrap();
    let (mut agent_says, mut card_says) = (None, None);
    loop {
        let mut wire = Vec::new();
        while card.wants_write() {
            card.write_tls(&mut wire).unwrap();
        }
        let mut answer = Vec::new();
        if agent_says.is_none() {
            let mut bytes = wire.as_slice();
            while !bytes.is_empty() && agent_says.is_none() {
                agent.read_tls(&mut bytes).unwrap();
                agent_says =
                    agent.process_new_packets().err().map(|error| agents_witness.explain(&error));
            }
            while agent.wants_write() {
                agent.write_tls(&mut answer).unwrap();
            }
        }
        let mut bytes = answer.as_slice();
        while !bytes.is_empty() && card_says.is_none() {
            card.read_tls(&mut bytes).unwrap();
            card_says = card.process_new_packets().err().map(|error| cards_witness.explain(&error));
        }
        if wire.is_empty() && answer.is_empty() {
            break;
        }
    }
    if agent_says.is_none() && card_says.is_none() {
        assert!(!agent.is_handshaking() && !card.is_handshaking());
    }
    (agent_says, card_says)
}

/// A directory of identities, each made as it is asked for.
struct Keys(tempfile::TempDir);

impl Keys {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn identity(&self, authority: &Authority, role: Role, validity: Validity) -> Identity {
        let directory = self.0.path().join(format!("{}-{}", authority.name(), role.name()));
        authority.write_identity(&directory, role, validity).unwrap();
        Identity::load(&directory, role).unwrap()
    }
}

fn authority() -> Authority {
    Authority::new(Validity::days(10)).unwrap()
}

#[test]
fn agent_and_card_of_one_authority_meet() {
    let (keys, ours) = (Keys::new(), authority());
    let agent = keys.identity(&ours, Role::Agent, Validity::days(10));
    let card = keys.identity(&ours, Role::Card, Validity::days(10));
    assert_eq!((agent.warning(), card.warning()), (None, None));
    assert_eq!(meet(&agent, &card), (None, None));
}

#[test]
fn a_card_of_another_authority_is_refused_and_both_ends_name_the_signer() {
    let (keys, ours, theirs) = (Keys::new(), authority(), authority());
    let agent = keys.identity(&ours, Role::Agent, Validity::days(10));
    // It believes our agent, so that it is its own certificate that is judged.
    let directory = keys.0.path().join("stranger");
    theirs.write_identity(&directory, Role::Card, Validity::days(10)).unwrap();
    let ours_ca = keys.0.path().join(format!("{}-agent/ca.pem", ours.name()));
    let both = [&ours_ca, &directory.join("ca.pem")].map(|path| std::fs::read(path).unwrap());
    std::fs::write(directory.join("ca.pem"), both.concat()).unwrap();
    let card = Identity::load(&directory, Role::Card).unwrap();
    let (agent_says, card_says) = meet(&agent, &card);
    let agent_says = agent_says.unwrap();
    assert!(agent_says.contains(&format!("is signed by `{}`", theirs.name())), "{agent_says}");
    assert!(agent_says.contains(&format!("only those that `{}` signed", ours.name())));
    assert!(agent_says.contains("make new keys with `lunar keys`"), "{agent_says}");
    let card_says = card_says.unwrap();
    assert!(card_says.starts_with("the agent refuses the certificate of this card"), "{card_says}");
    assert!(card_says.contains(theirs.name()), "{card_says}");
}

#[test]
fn an_agent_of_another_authority_is_refused_by_the_card() {
    let (keys, ours, theirs) = (Keys::new(), authority(), authority());
    let agent = keys.identity(&theirs, Role::Agent, Validity::days(10));
    let card = keys.identity(&ours, Role::Card, Validity::days(10));
    let (agent_says, card_says) = meet(&agent, &card);
    let agent_says = agent_says.unwrap();
    assert!(
        agent_says.starts_with("the card refuses the certificate of this agent"),
        "{agent_says}"
    );
    assert!(card_says.unwrap().contains(&format!("is signed by `{}`", theirs.name())));
}

#[test]
fn an_expired_certificate_is_refused_with_its_date_and_warned_of_at_home() {
    let (keys, ours) = (Keys::new(), authority());
    let now = SystemTime::now();
    let past = Validity { from: now - DAY * 30, until: now - DAY * 2 };
    let agent = keys.identity(&ours, Role::Agent, Validity::days(10));
    let card = keys.identity(&ours, Role::Card, past);
    let expected = format!("its certificate expired on {}", past.last_day());
    assert!(card.warning().unwrap().starts_with(&expected), "{:?}", card.warning());
    let (agent_says, card_says) = meet(&agent, &card);
    assert!(agent_says.unwrap().starts_with(&expected));
    assert!(card_says.unwrap().contains("it is not valid today by its clock"));
}

#[test]
fn a_certificate_of_tomorrow_speaks_of_the_clock() {
    let (keys, ours) = (Keys::new(), authority());
    let now = SystemTime::now();
    let future = Validity { from: now + DAY, until: now + DAY * 2 };
    let agent = keys.identity(&ours, Role::Agent, future);
    let card = keys.identity(&ours, Role::Card, Validity::days(10));
    let (agent_says, card_says) = meet(&agent, &card);
    assert!(agent_says.unwrap().contains("set its clock"));
    assert!(card_says.unwrap().ends_with("set the clock"));
}

#[test]
fn the_keys_of_the_other_role_are_no_identity() {
    let (keys, ours) = (Keys::new(), authority());
    for role in [Role::Agent, Role::Card] {
        let directory = keys.0.path().join(role.name());
        ours.write_identity(&directory, role.peer(), Validity::days(10)).unwrap();
        let error = Identity::load(&directory, role).unwrap_err().to_string();
        let (is, wanted) = (role.peer().name(), role.name());
        assert!(error.contains(&format!("that of `{is}`, which is no {wanted}")), "{error}");
        assert!(error.contains(&format!("give it the directory `{wanted}`")), "{error}");
    }
}

/// What [`Identity::load`] refuses to its own side, TLS refuses to the other one: either end of a handshake may be begun
/// with any identity.
#[test]
fn a_certificate_of_the_other_role_is_refused_by_the_peer() {
    let (keys, ours) = (Keys::new(), authority());
    let agent = keys.identity(&ours, Role::Agent, Validity::days(10));
    let card = keys.identity(&ours, Role::Card, Validity::days(10));
    let (agent_says, card_says) = meet(&card, &card);
    assert!(card_says.unwrap().starts_with("its certificate is that of `card`, which is no agent"));
    assert!(agent_says.unwrap().contains("it is not that of a"));
    let (agent_says, card_says) = meet(&agent, &agent);
    assert!(
        agent_says.unwrap().starts_with("its certificate is that of `agent`, which is no card")
    );
    assert!(card_says.unwrap().contains("it is not that of a"));
}

/// An authority that signs for others as well is of use: it is the name that counts.
#[test]
fn a_client_of_another_name_is_no_card() {
    let keys = Keys::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap();
    let identity = |name: &str, purpose, role: Role| {
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        parameters.extended_key_usages = vec![purpose];
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        let directory = keys.0.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("ca.pem"), issuer.pem()).unwrap();
        std::fs::write(directory.join("cert.pem"), certificate.pem()).unwrap();
        let path = directory.join("key.pem");
        std::fs::write(&path, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        Identity::load(&directory, role)
    };
    use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let agent = identity("agent.lunar", ServerAuth, Role::Agent).unwrap();
    let card = identity("card.lunar", ClientAuth, Role::Card).unwrap();
    assert_eq!(meet(&agent, &card), (None, None));
    let error = identity("printer.example", ClientAuth, Role::Card).unwrap_err().to_string();
    assert!(error.contains("that of `printer.example`, which is no card"), "{error}");
}

#[test]
fn a_directory_that_is_not_whole_says_which_file_and_why() {
    let (keys, ours) = (Keys::new(), authority());
    let directory = keys.0.path().join("card");
    let error = |directory: &Path| Identity::load(directory, Role::Card).unwrap_err().to_string();
    assert!(error(&directory).contains("ca.pem: No such file"), "{}", error(&directory));
    assert!(error(&directory).contains("`lunar keys` makes"));

    ours.write_identity(&directory, Role::Card, Validity::days(10)).unwrap();
    let key = directory.join("key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(error(&directory).contains("others can read it (mode 0644)"), "{}", error(&directory));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    let other = keys.0.path().join("other");
    ours.write_identity(&other, Role::Card, Validity::days(10)).unwrap();
    std::fs::copy(other.join("key.pem"), &key).unwrap();
    assert!(error(&directory).contains("it is not the key of cert.pem"), "{}", error(&directory));

    std::fs::write(directory.join("cert.pem"), "nothing").unwrap();
    assert!(error(&directory).contains("cert.pem: there is no certificate in it"));
}

#[test]
fn made_keys_meet_are_for_nobody_else_to_read_and_are_not_overwritten_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("keys");
    let made = make(&directory, Validity::days(365), false).unwrap();
    let met = |made: &lunar_control_channel::make::Made| {
        let agent = Identity::load(&made.agent, Role::Agent).unwrap();
        meet(&agent, &Identity::load(&made.card, Role::Card).unwrap())
    };
    assert_eq!(met(&made), (None, None));
    let mut files = 0;
    for folder in [&made.ca, &made.agent, &made.card] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            files += 1;
        }
    }
    assert_eq!(files, 8);

    let before = std::fs::read(made.agent.join("cert.pem")).unwrap();
    let error = make(&directory, Validity::days(365), false).err().unwrap().to_string();
    assert!(error.contains("is there already") && error.contains("--force"), "{error}");
    assert_eq!(std::fs::read(made.agent.join("cert.pem")).unwrap(), before);
    let again = make(&directory, Validity::days(365), true).unwrap();
    assert_ne!(again.authority, made.authority);
    assert_eq!(met(&again), (None, None));
}
