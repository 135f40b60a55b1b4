//! From text to types: each setting is parsed, and each error kept, so that one run reports all.

use std::{ffi::OsString, fmt, path::PathBuf};

use super::{
    raw::RawSettings,
    secret_file::read_secret_file,
    setting::{OptionalSetting, ParseResult, Setting, Source, Spec},
    unknown::{UnknownVariable, unknown_variables},
    watched::{NamedFile, Watched},
};

/// Every error in the configuration. Holds variable names and how to fix them, no values.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("configuration errors: {}\n  {}{}", .errors.len(), .errors.join("\n  "), describe(.unknown))]
pub struct ConfigErrors {
    errors: Vec<String>,
    /// A variable that is not a setting may be the reason why another is missing.
    unknown: Vec<UnknownVariable>,
}

fn describe(unknown: &[UnknownVariable]) -> String {
    let lines = unknown.iter().map(|UnknownVariable { name, nearest }| {
        format!("\n{name} is not a setting and is ignored; the nearest is {nearest}")
    });
    lines.collect()
}

/// The text of a setting, and where it was found.
struct Text {
    value: String,
    variable: String,
    file: Option<PathBuf>,
}

/// Parses settings one by one and collects the errors.
///
/// Its methods return `None` after they have recorded an error.
pub(super) struct Parser<'a> {
    raw: &'a RawSettings,
    errors: Vec<String>,
}

impl<'a> Parser<'a> {
    /// The settings that `assemble` parses, if there was no error.
    pub(super) fn run<T>(
        raw: &'a RawSettings,
        assemble: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Result<T, ConfigErrors> {
        let mut parser = Self { raw, errors: Vec::new() };
        let settings = assemble(&mut parser);
        settings
            .filter(|_| parser.errors.is_empty())
            .ok_or_else(|| ConfigErrors { errors: parser.errors, unknown: unknown_variables() })
    }

    /// Records an error that a check across settings has found.
    pub(super) fn reject(&mut self, spec: &Spec, why: &str) {
        self.error(&spec.variable(Source::Value), why);
    }

    /// Parses a setting that is required or has a default.
    pub(super) fn value<T>(&mut self, setting: &Setting<T>) -> Option<T> {
        let text = self.required_text(setting)?;
        self.parse(&text, setting.parse)
    }

    /// Parses a setting as [`Parser::value`] does, and follows the file that it was read from.
    pub(super) fn watched<T: 'static>(&mut self, setting: &Setting<T>) -> Option<Watched<T>> {
        self.watched_as(setting, setting.parse)
    }

    /// The same, with the parser that another setting asks for.
    pub(super) fn watched_as<T: 'static>(
        &mut self,
        setting: &Setting<T>,
        parse: fn(&str) -> ParseResult<T>,
    ) -> Option<Watched<T>> {
        let text = self.required_text(setting)?;
        self.watch(text, parse)
    }

    /// Parses a setting that may be unset, and follows the file that it was read from.
    pub(super) fn watched_optional<T: 'static>(
        &mut self,
        setting: &OptionalSetting<T>,
    ) -> Option<Option<Watched<T>>> {
        match self.text(&setting.spec)? {
            Some(text) => self.watch(text, setting.parse).map(Some),
            None => Some(None),
        }
    }

    fn watch<T: 'static>(
        &mut self,
        text: Text,
        parse: fn(&str) -> ParseResult<T>,
    ) -> Option<Watched<T>> {
        let value = self.parse(&text, parse)?;
        Some(match text {
            Text { value: content, variable, file: Some(path) } => {
                Watched::from_file(value, content, NamedFile { path, variable }, parse)
            }
            Text { file: None, .. } => Watched::fixed(value),
        })
    }

    fn required_text<T>(&mut self, setting: &Setting<T>) -> Option<Text> {
        let text = self.text(&setting.spec)?;
        if text.is_none() {
            self.reject(&setting.spec, &format!("is required: set {}", setting.ask));
        }
        text
    }

    /// Parses a setting that may be unset.
    pub(super) fn optional<T>(&mut self, setting: &OptionalSetting<T>) -> Option<Option<T>> {
        match self.text(&setting.spec)? {
            Some(text) => self.parse(&text, setting.parse).map(Some),
            None => Some(None),
        }
    }

    fn parse<T>(&mut self, text: &Text, parse: fn(&str) -> ParseResult<T>) -> Option<T> {
        let content = if text.file.is_some() { "the file's content " } else { "" };
        parse(&text.value)
            .map_err(|why| self.error(&text.variable, format_args!("{content}{why}")))
            .ok()
    }

    /// The text of a setting or its default; `Some(None)` where it has neither.
    fn text(&mut self, spec: &Spec) -> Option<Option<Text>> {
        let given = self.raw.find(spec);
        let (source, value) = match &given[..] {
            [] => (Source::Value, spec.default.map(|default| Ok((default.to_owned(), None)))),
            [(source, value)] => (*source, Some(read(*source, value))),
            [(source, _), (other, _), ..] => {
                let other = spec.variable(*other);
                (*source, Some(Err(format!("conflicts with {other}; set only one of them"))))
            }
        };
        let variable = spec.variable(source);
        match value.transpose() {
            Ok(text) => Some(text.map(|(value, file)| Text { value, variable, file })),
            Err(why) => {
                self.error(&variable, why);
                None
            }
        }
    }

    /// Records an error in a variable.
    pub(super) fn error(&mut self, variable: &str, why: impl fmt::Display) {
        self.errors.push(format!("{variable}: {why}"));
    }
}

/// Reads a value as text. If its source is a file, reads the file that it names.
fn read(source: Source, value: &OsString) -> Result<(String, Option<PathBuf>), String> {
    let text = value.to_str().ok_or("is not valid UTF-8")?;
    if text.is_empty() {
        return Err("is empty; give it a value or unset it".to_owned());
    }
    match source {
        Source::Value => Ok((text.to_owned(), None)),
        Source::File => Ok((read_secret_file(text.as_ref())?, Some(text.into()))),
    }
}
