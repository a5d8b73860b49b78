//! How every process logs: one line an event, as text or JSON, and without personal data.
//!
//! Our own code never passes a secret, a phone number, a JID or message text to a log macro. Libraries do: the WhatsApp
//! client logs JIDs and push names at `info` and `debug`, the database driver logs statements. So a foreign event keeps
//! only its level, its target and where in the source it stands; its words and fields are withheld, whatever the filter
//! lets through, and foreign spans are not recorded at all. A panic is logged by its place, not by its message.

use std::{ffi::OsStr, fmt, fs, io, panic, path::Path, str::FromStr};

use tracing::{Event, Metadata, Subscriber};
pub use tracing_appender::non_blocking::WorkerGuard;
use tracing_appender::{
    non_blocking::{NonBlocking, NonBlockingBuilder},
    rolling::{RollingFileAppender, Rotation},
};
use tracing_log::NormalizeEvent;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{LevelFilter, filter_fn},
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter,
        format::{DefaultFields, Format, JsonFields, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
};

use crate::config::LogConfig;

/// Roots of the targets whose log lines are written as they are: our own crates, and the access log.
const OWN: [&str; 8] =
    ["access", "control_plane", "data_plane", "data_plane_sandbox", "migration", "shared", "simulator", "standalone"];

/// The shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// When a new log file is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotate {
    /// Each hour, UTC.
    Hourly,
    /// Each day, UTC.
    Daily,
    /// Never.
    Never,
}

impl FromStr for Rotate {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "hourly" => Ok(Self::Hourly),
            "daily" => Ok(Self::Daily),
            "never" => Ok(Self::Never),
            _ => Err(()),
        }
    }
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `LOG_LEVEL` isn't a filter such as `info` or `info,data_plane=debug`.
    #[error("LOG_LEVEL is not a valid filter: use a level such as info, or info,data_plane=debug")]
    Filter,
    /// `LOG_FILE_PATH` can't be written.
    #[error("LOG_FILE_PATH: the file can't be made there")]
    File,
    /// Another subscriber is installed in this process.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// Whether this is a level or a filter. A word alone that is neither a level nor one of our targets isn't: the filter would take it for
/// a target, let nothing else through, and `LOG_LEVEL=warning` would hide every error.
#[must_use]
pub fn is_filter(text: &str) -> bool {
    let means_something =
        |part: &str| part.is_empty() || part.contains('=') || LevelFilter::from_str(part).is_ok() || is_own(part);
    let mut parts = text.split(',').map(str::trim);
    parts.clone().any(|part| !part.is_empty()) && parts.all(means_something) && EnvFilter::builder().parse(text).is_ok()
}

/// Sets up logging for the whole process: to standard error, or to the file that the settings name. Keep what is returned
/// until the process ends: dropping it writes the lines that wait.
///
/// # Errors
/// [`TelemetryError`] if the filter can't be read, the file can't be made, or logging is already set up.
#[must_use = "dropping it stops logging to a file"]
pub fn init(config: &LogConfig) -> Result<Option<WorkerGuard>, TelemetryError> {
    let Some((writer, guard)) = file(config)? else {
        install(subscriber(&config.level, config.format, io::stderr)?)?;
        return Ok(None);
    };
    install(subscriber(&config.level, config.format, writer)?)?;
    Ok(Some(guard))
}

/// The file that the settings name, if they name one.
fn file(config: &LogConfig) -> Result<Option<(NonBlocking, WorkerGuard)>, TelemetryError> {
    let Some(path) = &config.file else { return Ok(None) };
    let name = path.file_name().and_then(OsStr::to_str).ok_or(TelemetryError::File)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Else the appender looks into a folder that isn't there yet, and complains.
    fs::create_dir_all(folder).map_err(|_| TelemetryError::File)?;
    let file = RollingFileAppender::builder()
        .rotation(match config.rotation {
            Rotate::Hourly => Rotation::HOURLY,
            Rotate::Daily => Rotation::DAILY,
            Rotate::Never => Rotation::NEVER,
        })
        .filename_prefix(name)
        .max_log_files(config.keep)
        .build(folder)
        .map_err(|_| TelemetryError::File)?;
    // Lossless and bounded: a slow disk slows the program down rather than hiding what happened.
    Ok(Some(NonBlockingBuilder::default().lossy(false).buffered_lines_limit(8_192).finish(file)))
}

fn install(subscriber: impl Subscriber + Send + Sync) -> Result<(), TelemetryError> {
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::AlreadySet)?;
    tracing_log::LogTracer::init().map_err(|_| TelemetryError::AlreadySet)?;
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a task panicked");
    }));
    Ok(())
}

/// The subscriber that [`init`] installs, writing elsewhere.
///
/// # Errors
/// [`TelemetryError::Filter`] if the filter can't be read.
pub fn subscriber<W>(
    filter: &str,
    format: LogFormat,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + use<W>, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse(filter).map_err(|_| TelemetryError::Filter)?;
    let spans_of_ours = filter_fn(|meta: &Metadata<'_>| meta.is_event() || is_own(meta.target()));
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .fmt_fields(DefaultFields::new())
            .event_format(Withholding { own: Format::default().with_ansi(false), json: false })
            .with_ansi(false)
            .with_writer(writer)
            .with_filter(spans_of_ours)
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .fmt_fields(JsonFields::new())
            .event_format(Withholding { own: Format::default().json(), json: true })
            .with_writer(writer)
            .with_filter(spans_of_ours)
            .boxed(),
    };
    Ok(tracing_subscriber::registry().with(lines.with_filter(filter)))
}

/// Whether an event's own words may be written.
fn is_own(target: &str) -> bool {
    OWN.contains(&target.split("::").next().unwrap_or(target))
}

/// Writes our events as `own` does, and of foreign ones only what can't hold personal data.
struct Withholding<F> {
    own: F,
    json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Withholding<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let normalized = event.normalized_metadata();
        let meta = normalized.as_ref().unwrap_or_else(|| event.metadata());
        if is_own(meta.target()) {
            return self.own.format_event(ctx, writer, event);
        }
        let at = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        // A target is a module path of a library, except where a program names its own: only such characters pass.
        let target: String =
            meta.target().chars().filter(|c| c.is_ascii_alphabetic() || matches!(c, ':' | '_' | '-')).collect();
        let (level, line) = (meta.level(), meta.line().unwrap_or_default());
        if self.json {
            writeln!(
                writer,
                r#"{{"timestamp":"{at}","level":"{level}","target":"{target}","line":{line},"fields":{{"message":"(withheld)"}}}}"#
            )
        } else {
            writeln!(writer, "{at} {level:>5} {target}:{line}: (withheld)")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, act: impl FnOnce()) -> String {
        let lines = Lines::default();
        let sink = lines.clone();
        tracing::subscriber::with_default(subscriber("trace", format, move || sink.clone()).unwrap(), act);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_library_s_words_are_withheld_and_ours_are_not() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(format, || {
                tracing::info!(target: "control_plane::sessions", "placed");
                tracing::warn!(target: "whatsapp_rust::client", jid = "15550001234@s.whatsapp.net", "hello 15550001234");
                let span = tracing::info_span!(target: "sqlx::query", "query", value = "sentinel");
                span.in_scope(|| tracing::info!(target: "data_plane", "inside"));
            });
            assert!(text.contains("placed") && text.contains("inside"), "{text}");
            assert!(text.contains("whatsapp_rust::client") && text.contains("(withheld)"), "{text}");
            assert!(!text.contains("15550001234") && !text.contains("sentinel"), "{text}");
        }
    }

    #[test]
    fn log_files_are_rotated_by_name_and_hold_every_line() {
        let folder = tempfile::tempdir().unwrap();
        let values = [
            ("LOG_FILE_PATH", folder.path().join("app.log").display().to_string()),
            ("LOG_FILE_ROTATION", "never".into()),
        ];
        let values = crate::config::Values::new(values.map(|(name, text)| (name.to_owned(), text)));
        let (writer, guard) = file(&LogConfig::read(&values).unwrap()).unwrap().unwrap();
        tracing::subscriber::with_default(subscriber("info", LogFormat::Text, writer).unwrap(), || {
            for line in 0..1_000 {
                tracing::info!(target: "access", line, "answered");
            }
        });
        drop(guard);
        let text = std::fs::read_to_string(folder.path().join("app.log")).unwrap();
        assert_eq!(text.lines().count(), 1_000);
        assert!(text.ends_with("access: answered line=999\n"), "{}", text.lines().next().unwrap());
    }

    #[test]
    fn a_word_that_is_no_level_is_no_filter() {
        for text in [
            "info",
            "WARN",
            "off",
            "info,access=off",
            "control_plane",
            "info,data_plane::session",
            "sqlx=debug",
            "info,",
        ] {
            assert!(is_filter(text), "{text}");
        }
        for text in ["warning", "inof", "info,verbose", "info;debug", ",", "access=verbose", "sentinel garbage!!"] {
            assert!(!is_filter(text), "{text}");
        }
    }

    #[test]
    fn each_json_line_is_json() {
        let text = logged(LogFormat::Json, || {
            tracing::info!(target: "control_plane", answer = 42, "ours");
            tracing::info!(target: "hyper\"}", "theirs");
        });
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }
}
