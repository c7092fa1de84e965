//! A run: starts the processes, verifies, measures, and ends them.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use lunar_firmware::Stop;
use lunar_srp::login::PortId;
use tempfile::TempDir;

use crate::configuration::{Configuration, Seen};
use crate::conversation::{Content, Range, Reply, Request, Workload};
use crate::cores::Plan;
use crate::image::{self, Image, Restorer};
use crate::pieces::{Piece, Role};
use crate::report::{Comparison, Report, Row, thousands};

/// How a run goes.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Image behind LUN 0; without it one is made. Some of its zeros are written and restored.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    pub image: Option<PathBuf>,
    /// Export the image read-only: nothing of it is written.
    #[arg(long, requires = "image")]
    pub read_only: bool,
    /// A configuration of your own instead of the example's. Its files are only read.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Poll groups of the card.
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    pub groups: u32,
    /// Seconds of each measurement.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub seconds: f64,
    /// Measure for 0.2 seconds each, to see that everything works.
    #[arg(long, conflicts_with = "seconds")]
    pub quick: bool,
    /// Measure only these LUNs.
    #[arg(long, value_name = "LUN", value_delimiter = ',')]
    pub luns: Vec<u16>,
    /// Write the measurements to this file, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Verify, then keep everything up until Ctrl-C instead of measuring.
    #[arg(long)]
    pub serve: bool,
    /// Show the logs of all processes.
    #[arg(long, short)]
    pub verbose: bool,
}

impl Options {
    fn measures(&self, lun: u16) -> bool {
        self.luns.is_empty() || self.luns.contains(&lun)
    }
}

/// Ctrl-C or SIGTERM ended the run.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Run directories are called so, then follow the process's id and something random.
const DIRECTORY_PREFIX: &str = "lunar-emulate-";
/// The agent's API in one.
const API_SOCKET: &str = "api.sock";
/// The initiator's address on the fabric, in the form of a port GID.
const INITIATOR: &str = "fe80:0000:0000:0000:0002:c903:00aa:0001";
/// The lower half of its port identifier.
const INITIATOR_GUID: u64 = 0x0002_c903_00aa_0001;
/// How long the processes may take until the card serves.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How often a waiting run looks after its processes.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
/// Turns of the comparison with the floor.
const FLOOR_TURNS: u32 = 3;
/// Seed of the pattern that is written and checked.
const PATTERN_SEED: u64 = 0x4c75_6e61_7221_0001;

/// The API socket of the newest run that is up.
#[must_use]
pub fn serving() -> Option<PathBuf> {
    let runs = fs::read_dir(std::env::temp_dir()).ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let socket = entry.path().join(API_SOCKET);
        let modified = fs::symlink_metadata(&socket).ok()?.modified().ok()?;
        owner(&name).map(|_| (modified, socket))
    });
    runs.max().map(|(_, socket)| socket)
}

/// Removes the directories of runs that were killed. Their processes end by themselves.
fn remove_stale() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if owner(&entry.file_name()).is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            // Another user's cannot be removed, and is no concern of this run.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The process whose run directory is called `name`.
fn owner(name: &std::ffi::OsStr) -> Option<u32> {
    let (id, _) = name.to_str()?.strip_prefix(DIRECTORY_PREFIX)?.split_once('-')?;
    id.parse().ok()
}

/// Runs the demonstration.
///
/// # Errors
/// Whatever could not be started or did not check out.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let seconds = if options.quick { 0.2 } else { options.seconds };
    ensure!(
        seconds.is_finite() && (0.01..=3600.0).contains(&seconds),
        "--seconds {seconds}: it can be 0.01 to 3600"
    );
    let stop = Stop::default();
    stop.on_signals()?;
    // Dropped in the reverse order: processes, the image's restoration, the directory.
    remove_stale();
    let prefix = format!("{DIRECTORY_PREFIX}{}-", std::process::id());
    let directory = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir()
        .context("no directory for the run (TMPDIR)")?;
    let image = match (&options.image, &options.config) {
        (Some(path), _) => Some(Image::open(path)?),
        (None, None) => Some(Image::make(directory.path())?),
        (None, Some(_)) => None,
    };
    // The example is run once for each placement of the data of the host's devices.
    let configurations = match (&image, &options.config) {
        (Some(image), _) => [false, true]
            .map(|copied| {
                Configuration::from_example(&image.path, options.read_only, copied, INITIATOR)
            })
            .into_iter()
            .collect::<anyhow::Result<Vec<_>>>()?,
        (None, Some(path)) => vec![Configuration::from_file(path, INITIATOR)?],
        (None, None) => bail!("neither an image nor a configuration"),
    };
    let duration = Duration::try_from_secs_f64(seconds)?;
    for lun in &options.luns {
        let there = configurations.iter().flat_map(|one| &one.luns).map(|one| one.lun);
        let there: std::collections::BTreeSet<u16> = there.collect();
        ensure!(there.contains(lun), "--luns {lun}: there is none; there are {there:?}");
    }
    println!(
        "Lunar {} on the emulator, in {}",
        env!("CARGO_PKG_VERSION"),
        directory.path().display()
    );
    if let Some(image) = &image {
        let (path, mib) = (image.path.display(), image.bytes >> 20);
        println!("Image: {path} ({mib} MiB): {}", image.description);
    }
    let mut report = Report::new(duration, options.groups);
    for (pass, configuration) in configurations.into_iter().enumerate() {
        let again = |lun: &Seen| lun.on_host && options.measures(lun.lun);
        if pass > 0 && !configuration.luns.iter().any(again) {
            break;
        }
        let mut restorer = image.as_ref().map(|image| Restorer::new(&image.path));
        let board = Board::start(&directory, &configuration, options)?;
        let mut run = Run {
            talk: None,
            board,
            options,
            configuration,
            stop: stop.clone(),
            bars: MultiProgress::new(),
        };
        if pass > 0 {
            println!("\nThe same with the data of the host's devices in the card's memory:");
        }
        run.describe();
        run.board.wait_until_serving(&run.stop)?;
        run.log_in()?;
        run.verify(image.as_ref(), restorer.as_mut())?;
        if options.serve {
            run.serve()?;
            return run.end();
        }
        // What is on the card alone is the same in the second pass.
        let only_host = pass > 0;
        run.measure(image.as_ref(), restorer.as_mut(), duration, only_host, &mut report)?;
        run.end()?;
    }
    print_report(&report);
    if let Some(path) = &options.json {
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("--json {}", path.display()))?;
    }
    Ok(())
}

fn print_report(report: &Report) {
    println!("\n{}", report.table());
    if let Some(comparison) = &report.floor {
        println!("{}", comparison.sentence());
    }
}

/// Card and host.
struct Board {
    firmware: Piece,
    agent: Piece,
    keeper: Piece,
    api: PathBuf,
    fabric: String,
    plan: Plan,
}

impl Board {
    fn start(
        directory: &TempDir,
        configuration: &Configuration,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let path = |name: &str| -> anyhow::Result<String> {
            let path = directory.path().join(name);
            Ok(path.to_str().context("the directory for temporary files is not UTF-8")?.to_owned())
        };
        let (keeper_socket, control, api) =
            (path("keeper.sock")?, path("control.sock")?, path(API_SOCKET)?);
        let (fabric, conf, pr_dir) = (path("fabric")?, path("scst.conf")?, path("pr")?);
        fs::create_dir_all(&fabric)?;
        fs::write(&conf, configuration.text())?;
        let plan = Plan::for_this_machine(options.groups as usize);
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let keeper = Piece::start(
            Role::Keeper,
            &words(&[
                "--socket",
                &keeper_socket,
                "--groups",
                &options.groups.to_string(),
                "--exit-with-parent",
            ]),
            options.verbose,
        )?;
        let agent = Piece::start(
            Role::Agent,
            &words(&[
                "--config",
                &conf,
                "--keeper",
                &keeper_socket,
                "--control",
                &control,
                "--api",
                &api,
                "--pr-dir",
                &pr_dir,
                "--exit-with-parent",
            ]),
            options.verbose,
        )?;
        let mut card = words(&[
            "--control",
            &control,
            "--keeper",
            &keeper_socket,
            "--fabric",
            &fabric,
            "--exit-with-parent",
        ]);
        if !plan.groups.is_empty() {
            let cores: Vec<String> = plan.groups.iter().map(usize::to_string).collect();
            card.extend(["--cores".to_owned(), cores.join(",")]);
        }
        let firmware = Piece::start(Role::Firmware, &card, options.verbose)?;
        Ok(Self { firmware, agent, keeper, api: api.into(), fabric, plan })
    }

    fn check(&mut self) -> anyhow::Result<()> {
        self.keeper.check()?;
        self.agent.check()?;
        self.firmware.check()
    }

    /// What `lunar show --json` says.
    fn show(&self) -> anyhow::Result<serde_json::Value> {
        let command = lunar_cli::Command::Show { what: None, json: true };
        let text = lunar_cli::run(&lunar_cli::Options { api: self.api.clone(), command })?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until the card has the configuration in force.
    fn wait_until_serving(&mut self, stop: &Stop) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        let mut missing = "the agent does not answer yet".to_owned();
        while Instant::now() < deadline {
            if stop.is_requested() {
                return Err(Interrupted.into());
            }
            self.check()?;
            match self.show() {
                Ok(shown) => {
                    let card = &shown["card"];
                    let generation = card["applied_generation"].as_u64().unwrap_or(0);
                    let refused = card["refused"].as_str().unwrap_or("");
                    ensure!(refused.is_empty(), "the card refused the configuration: {refused}");
                    if generation > 0
                        && card["configuration_generation"].as_u64() == Some(generation)
                    {
                        return Ok(());
                    }
                    missing = "the card has not taken the configuration".to_owned();
                }
                Err(error) => missing = format!("{error:#}"),
            }
            std::thread::sleep(WATCH_INTERVAL);
        }
        bail!("nothing serves after {START_PATIENCE:?}: {missing}; --verbose shows the logs")
    }

    fn end(&mut self) -> anyhow::Result<()> {
        // The card says goodbye to the agent, the agent gives back what the keeper holds.
        let ends = [self.firmware.end(), self.agent.end(), self.keeper.end()];
        ends.into_iter().collect()
    }
}

/// The conversation with the initiator's process.
struct Talk {
    // Closed before the process is waited for: its end is what ends the process.
    requests: ChildStdin,
    piece: Piece,
    replies: mpsc::Receiver<anyhow::Result<Reply>>,
}

impl Talk {
    fn start(verbose: bool) -> anyhow::Result<Self> {
        let mut piece = Piece::start(Role::Initiator, &[], verbose)?;
        let (requests, stdout) = piece.take_conversation().context("the initiator has no pipes")?;
        let (sender, replies) = mpsc::channel();
        std::thread::Builder::new().name("lunar-replies".to_owned()).spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let reply = line.map_err(anyhow::Error::from).and_then(|line| {
                    serde_json::from_str(&line).with_context(|| format!("a strange reply: {line}"))
                });
                if sender.send(reply).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { requests, piece, replies })
    }
}

/// Everything a run has.
struct Run<'a> {
    // The initiator ends before the board.
    talk: Option<Talk>,
    board: Board,
    options: &'a Options,
    configuration: Configuration,
    stop: Stop,
    bars: MultiProgress,
}

impl Run<'_> {
    fn describe(&self) {
        let board = &self.board;
        let groups = self.options.groups;
        let cores = match board.plan.groups.as_slice() {
            [] => "not pinned".to_owned(),
            cores => format!("the first on core {}", cores[0]),
        };
        for (side, piece, what) in [
            ("host", &board.keeper, "arenas and rings".to_owned()),
            ("host", &board.agent, "devices and configuration".to_owned()),
            ("card", &board.firmware, format!("{groups} poll groups, {cores}")),
        ] {
            println!("  {side:9} {:15} pid {:<8} {what}", piece.role().name(), piece.id());
        }
    }

    /// Asks the initiator's process; its answer. `what` names a progress bar.
    fn ask(&mut self, request: &Request, what: Option<&str>) -> anyhow::Result<Reply> {
        let talk = self.talk.as_mut().context("the initiator is not started")?;
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        if talk.requests.write_all(line.as_bytes()).is_err() {
            talk.piece.end()?;
            bail!("the initiator ended without a word");
        }
        // Hidden by indicatif where standard error is no terminal.
        let bar = what.map(|what| {
            let style = ProgressStyle::with_template("{msg:44} {bar:40} {percent:>3} %")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bars.add(ProgressBar::new(1000).with_style(style).with_message(what.to_owned()))
        });
        let reply = loop {
            match talk.replies.recv_timeout(WATCH_INTERVAL) {
                Ok(Ok(Reply::Progress(thousandths))) => {
                    if let Some(bar) = &bar {
                        bar.set_position(thousandths.into());
                    }
                }
                Ok(Ok(Reply::Failed(reason))) => break Err(anyhow::anyhow!("initiator: {reason}")),
                Ok(reply) => break reply,
                Err(RecvTimeoutError::Disconnected) => {
                    talk.piece.end()?;
                    break Err(anyhow::anyhow!("the initiator ended without an answer"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.stop.is_requested() {
                break Err(Interrupted.into());
            }
            if let Err(error) = self.board.check() {
                break Err(error);
            }
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        reply
    }

    fn log_in(&mut self) -> anyhow::Result<()> {
        let talk = Talk::start(self.options.verbose)?;
        let id = talk.piece.id();
        self.talk = Some(talk);
        let target_port = self.configuration.target_port;
        let groups = self.options.groups as usize;
        let core = self.board.plan.initiator;
        // A nexus lives where its ports say; this one is wanted on the group with a core of its own.
        let initiator_port = (0..u64::MAX)
            .map(|extension| {
                let mut port = [0; 16];
                port[..8].copy_from_slice(&extension.to_be_bytes());
                port[8..].copy_from_slice(&INITIATOR_GUID.to_be_bytes());
                port
            })
            .find(|port| lunar_target::group_of(&PortId(*port), &PortId(target_port), groups) == 0)
            .context("no port identifier belongs to poll group 0")?;
        let pinned = core.map_or("not pinned".to_owned(), |core| format!("on core {core}"));
        println!("  {:9} {:15} pid {id:<8} busy-polls, {pinned}", "initiator", "lunar-initiator");
        let request = Request::Login {
            fabric: self.board.fabric.clone(),
            address: INITIATOR.to_owned(),
            initiator_port,
            target_port,
            core,
        };
        match self.ask(&request, None)? {
            Reply::LoggedIn { request_limit, it_iu_bytes_max } => println!(
                "Login to {}: request limit {request_limit}, IUs up to {it_iu_bytes_max} bytes, \
                 nexus on poll group 0",
                self.configuration.target
            ),
            other => bail!("the initiator answered {other:?} to a login"),
        }
        Ok(())
    }

    /// Looks at every LUN, compares files with what is read over SRP, and writes where it may.
    fn verify(
        &mut self,
        image: Option<&Image>,
        mut restorer: Option<&mut Restorer>,
    ) -> anyhow::Result<()> {
        let Reply::Luns(mut found) = self.ask(&Request::Luns, None)? else {
            bail!("REPORT LUNS went wrong")
        };
        found.sort_unstable();
        let mut configured: Vec<u16> = self.configuration.luns.iter().map(|lun| lun.lun).collect();
        // SPC-6 6.33: LUN 0 is always reported.
        if configured.first() != Some(&0) {
            configured.insert(0, 0);
        }
        ensure!(
            found == configured,
            "REPORT LUNS says {found:?}, configured for this initiator are {configured:?}"
        );
        for lun in self.configuration.luns.clone() {
            let Reply::Unit(unit) = self.ask(&Request::Inspect { lun: lun.lun }, None)? else {
                bail!("LUN {} cannot be inspected", lun.lun)
            };
            println!(
                "LUN {}: {} {} {}, serial {}, {} blocks of {} bytes; {} on the {}, data in {}",
                lun.lun,
                unit.vendor,
                unit.product,
                unit.revision,
                unit.serial,
                thousands(unit.blocks as f64),
                unit.block_bytes,
                lun.handler,
                if lun.on_host { "host" } else { "card" },
                lun.placement
            );
        }
        for lun in self.configuration.luns.clone() {
            let Some(file) = lun.file.clone() else { continue };
            self.compare(&lun, Path::new(&file))?;
            let (Some(image), Some(restorer)) = (image, restorer.as_deref_mut()) else { continue };
            match image.free.filter(|_| !lun.read_only) {
                Some(range) => {
                    let bytes = range.bytes.min(4 << 20);
                    self.write_and_restore(&lun, image, Range { bytes, ..range }, restorer)?;
                }
                None if lun.read_only => println!("LUN {}: only read, as it is read-only", lun.lun),
                None => println!("LUN {}: only read, as no MiB of it is free (zeros)", lun.lun),
            }
        }
        Ok(())
    }

    /// Reads the whole of `lun` and compares its hash with the file's.
    fn compare(&mut self, lun: &Seen, file: &Path) -> anyhow::Result<()> {
        let start = Instant::now();
        let what = format!("LUN {}: reading all of it", lun.lun);
        let reply = self.ask(&Request::Hash { lun: lun.lun }, Some(&what))?;
        let Reply::Hash { sha256, bytes } = reply else { bail!("LUN {} is not read", lun.lun) };
        let seconds = start.elapsed().as_secs_f64();
        // A rest that fills no block is not on the LUN.
        let (own, own_bytes) = image::hash(file, bytes)?;
        ensure!(
            (&sha256, bytes) == (&own, own_bytes),
            "LUN {}: {bytes} bytes read over SRP have SHA-256 {sha256}, the first {own_bytes} of {} \
             have {own}",
            lun.lun,
            file.display()
        );
        println!(
            "LUN {}: {} MiB read over SRP in {seconds:.2} s, SHA-256 {}… is the file's",
            lun.lun,
            bytes >> 20,
            &sha256[..16]
        );
        Ok(())
    }

    fn write_and_restore(
        &mut self,
        lun: &Seen,
        image: &Image,
        range: Range,
        restorer: &mut Restorer,
    ) -> anyhow::Result<()> {
        let content = Content::Pattern(PATTERN_SEED.wrapping_add(lun.lun.into()));
        restorer.begin(range);
        self.write(lun, range, content)?;
        if let Some(place) = image.difference(range, content)? {
            bail!("LUN {}: byte {place} of the file is not what was written over SRP", lun.lun);
        }
        self.restore(lun, image, range, restorer)?;
        println!(
            "LUN {}: {} KiB written over SRP at byte {} found in the file, restored, SHA-256 as before",
            lun.lun,
            range.bytes >> 10,
            range.offset
        );
        Ok(())
    }

    fn write(&mut self, lun: &Seen, range: Range, content: Content) -> anyhow::Result<()> {
        let request = Request::Write { lun: lun.lun, range, content };
        match self.ask(&request, Some(&format!("LUN {}: writing", lun.lun)))? {
            Reply::Written => Ok(()),
            other => bail!("the initiator answered {other:?} to a write"),
        }
    }

    /// Writes the zeros back and checks the whole file.
    fn restore(
        &mut self,
        lun: &Seen,
        image: &Image,
        range: Range,
        restorer: &mut Restorer,
    ) -> anyhow::Result<()> {
        self.write(lun, range, Content::Zeros)?;
        let (sha256, _) = image::hash(&image.path, u64::MAX)?;
        ensure!(sha256 == image.sha256, "LUN {}: the image is not as it was before", lun.lun);
        restorer.done();
        Ok(())
    }

    fn measure(
        &mut self,
        image: Option<&Image>,
        mut restorer: Option<&mut Restorer>,
        duration: Duration,
        only_host: bool,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        for lun in self.configuration.luns.clone() {
            if !self.options.measures(lun.lun) || (only_host && !lun.on_host) {
                continue;
            }
            let Reply::Unit(unit) = self.ask(&Request::Inspect { lun: lun.lun }, None)? else {
                bail!("LUN {} cannot be inspected", lun.lun)
            };
            let whole = Range { offset: 0, bytes: unit.blocks * u64::from(unit.block_bytes) };
            let null = lun.handler == lunar_mgmt::tree::Handler::NullIo.name();
            let scratch = image.filter(|image| image.made).and_then(|image| image.free);
            let writable = if null { Some(whole) } else { scratch.filter(|_| lun.file.is_some()) };
            let writable = writable.filter(|_| !lun.read_only);
            let written = !null && writable.is_some();
            if let (Some(range), Some(restorer), true) =
                (writable, restorer.as_deref_mut(), written)
            {
                restorer.begin(range);
            }
            // Initiator, poll group and, for a device on the host, the agent are busy.
            let yields = lun.on_host && self.board.plan.available < 3;
            for mut workload in workloads(lun.lun, whole, writable, duration) {
                workload.yields = yields;
                let what = format!(
                    "LUN {} ({}): {} KiB {} depth {}",
                    lun.lun,
                    lun.device,
                    workload.transfer_bytes >> 10,
                    if workload.write { "writes" } else { "reads" },
                    workload.depth
                );
                match self.ask(&Request::Measure(workload), Some(&what))? {
                    Reply::Measured(figures) => {
                        report.measurements.push(Row::new(&lun, &workload, figures));
                    }
                    other => bail!("the initiator answered {other:?} to a measurement"),
                }
            }
            if null && !lun.on_host && report.floor.is_none() {
                report.floor = self.compare_with_floor(&lun, whole, duration)?;
            }
            if let (Some(range), Some(image), Some(restorer), true) =
                (writable, image, restorer.as_deref_mut(), written)
            {
                self.restore(&lun, image, range, restorer)?;
            }
        }
        Ok(())
    }

    /// Measures `lun`, a null device on the card, and the floor by turns, so that both see the same
    /// of whatever else the machine does.
    fn compare_with_floor(
        &mut self,
        lun: &Seen,
        whole: Range,
        duration: Duration,
    ) -> anyhow::Result<Option<Comparison>> {
        let wanted = |one: &Workload| !one.write && (one.transfer_bytes, one.depth) == (4096, 32);
        let all = workloads(lun.lun, whole, None, duration);
        let Some(workload) = all.into_iter().find(wanted) else { return Ok(None) };
        let mut best = Comparison { iops: 0.0, floor_iops: 0.0 };
        for turn in 1..=FLOOR_TURNS {
            let what = format!("LUN {} and the floor, turn {turn} of {FLOOR_TURNS}", lun.lun);
            match self.ask(&Request::Measure(workload), Some(&what))? {
                Reply::Measured(figures) => best.iops = best.iops.max(figures.iops),
                other => bail!("the initiator answered {other:?} to a measurement"),
            }
            best.floor_iops = best.floor_iops.max(crate::floor::measure(duration, 1)?);
        }
        Ok(Some(best))
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        let api = self.board.api.display();
        println!("\nServing. Look at it with");
        println!("  emulate lunar show            (or: cargo run --release -- lunar show)");
        println!("  lunar --api {api} show");
        println!("Ctrl-C ends it.");
        while !self.stop.is_requested() {
            self.board.check()?;
            if let Some(talk) = self.talk.as_mut() {
                talk.piece.check()?;
            }
            std::thread::sleep(WATCH_INTERVAL);
        }
        // This is how serving ends, so nothing is interrupted from here on.
        self.stop = Stop::default();
        Ok(())
    }

    /// Looks for trouble that no command noticed, logs out, and ends all processes.
    fn end(&mut self) -> anyhow::Result<()> {
        let shown = self.board.show()?;
        for ring in shown["rings"].as_array().into_iter().flatten() {
            let fault = ring["fault"].as_str().unwrap_or("");
            ensure!(fault.is_empty(), "ring {} is closed: {fault}", ring["ring"]);
        }
        let mut groups: Vec<_> = shown["poll_groups"].as_array().into_iter().flatten().collect();
        groups.sort_by_key(|group| group["group"].as_u64());
        let groups: Vec<String> = groups
            .into_iter()
            .map(|group| {
                let commands = group["commands"].as_u64().unwrap_or(0);
                format!("group {}: {} commands", group["group"], thousands(commands as f64))
            })
            .collect();
        println!("Poll {}", groups.join(", "));
        match self.ask(&Request::Logout, None)? {
            Reply::LoggedOut => {}
            other => bail!("the initiator answered {other:?} to a logout"),
        }
        if let Some(mut talk) = self.talk.take() {
            drop(talk.requests);
            talk.piece.end()?;
        }
        self.board.end()?;
        println!("Logged out; all processes have ended.");
        Ok(())
    }
}

/// What is measured on a LUN.
fn workloads(lun: u16, whole: Range, writable: Option<Range>, duration: Duration) -> Vec<Workload> {
    let mut all = Vec::new();
    for (transfer_bytes, sequential, depth) in
        [(4 << 10, false, 1), (4 << 10, false, 32), (128 << 10, true, 8)]
    {
        for write in [false, true] {
            let Some(range) = (if write { writable } else { Some(whole) }) else { continue };
            // A small device is measured with what it has room for.
            if range.bytes >= u64::from(transfer_bytes) {
                let duration_ns = duration.as_nanos() as u64;
                all.push(Workload {
                    lun,
                    write,
                    sequential,
                    transfer_bytes,
                    depth,
                    range,
                    duration_ns,
                    yields: false,
                });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_directories_name_their_process() {
        assert_eq!(owner("lunar-emulate-123-aB_c".as_ref()), Some(123));
        assert_eq!(owner("lunar-emulate-x-abc".as_ref()), None);
        assert_eq!(owner("other-123-abc".as_ref()), None);
    }

    #[test]
    fn what_may_not_be_written_is_only_read() {
        let whole = Range { offset: 0, bytes: 1 << 30 };
        let scratch = Range { offset: 1 << 29, bytes: 1 << 20 };
        let all = workloads(3, whole, Some(scratch), Duration::from_secs(1));
        assert_eq!(all.len(), 6);
        assert!(all.iter().all(|one| one.range == if one.write { scratch } else { whole }));
        let reads = workloads(3, whole, None, Duration::from_secs(1));
        assert_eq!(reads.len(), 3);
        assert!(reads.iter().all(|one| !one.write));
    }
}
