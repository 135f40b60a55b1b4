//! The shape of `src`: files import in one direction, and stay small enough to read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, File, ItemMod, ItemUse, UseTree,
    visit::{self, Visit},
};

/// A module's path below the crate: `[]` is `lib.rs`.
type Module = Vec<String>;

/// The longest file that may stand in `src`, in lines.
const LONGEST_FILE: usize = 400;

/// What one file imports: full paths, by the name each has in the file.
#[derive(Default)]
struct Imports {
    module: Module,
    /// From `use` items. `None` as a name: a glob.
    named: Vec<(Option<String>, Module)>,
    /// From `use` items that others may import from here in turn.
    reexported: BTreeMap<String, Module>,
    /// From paths in the code, as written.
    written: Vec<Module>,
}

impl Imports {
    fn of(module: Module, file: &File) -> Self {
        let mut imports = Self { module, ..Self::default() };
        imports.visit_file(file);
        imports
    }

    /// A path from the crate's root, if the path leads into the crate.
    fn absolute(&self, path: &[String], modules: &BTreeSet<Module>) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        let mut base = self.module.clone();
        match first.as_str() {
            "crate" => return Some(rest.to_vec()),
            "self" => {}
            "super" => {
                base.pop();
                let mut rest = rest;
                while let [up, further @ ..] = rest
                    && up == "super"
                {
                    base.pop();
                    rest = further;
                }
                base.extend_from_slice(rest);
                return Some(base);
            }
            name => {
                let imported = self.named.iter().find(|(known, _)| known.as_deref() == Some(name));
                match imported {
                    Some((_, target)) if path.len() > 1 => base = target.clone(),
                    _ => {
                        base.push(name.to_owned());
                        modules.contains(&base).then_some(())?;
                    }
                }
            }
        }
        base.extend_from_slice(rest);
        Some(base)
    }

    fn add(&mut self, tree: &UseTree, mut path: Module, public: bool) {
        let (name, target) = match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                return self.add(&part.tree, path, public);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.add(tree, path.clone(), public));
            }
            UseTree::Name(name) if name.ident == "self" => (path.last().cloned(), path),
            UseTree::Name(name) => {
                path.push(name.ident.to_string());
                (Some(name.ident.to_string()), path)
            }
            UseTree::Rename(rename) => {
                path.push(rename.ident.to_string());
                (Some(rename.rename.to_string()), path)
            }
            UseTree::Glob(_) => (None, path),
        };
        if let (true, Some(name)) = (public, &name) {
            self.reexported.insert(name.clone(), target.clone());
        }
        self.named.push((name, target));
    }
}

impl Visit<'_> for Imports {
    fn visit_item_mod(&mut self, item: &ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        if !is_test(&item.attrs) {
            let public = !matches!(item.vis, syn::Visibility::Inherited);
            self.add(&item.tree, Vec::new(), public);
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        self.written.push(path.segments.iter().map(|part| part.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|cfg| cfg.is_ident("test"))
    })
}

fn source_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(Module, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&root, &mut files);
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let relative = path.strip_prefix(&root).unwrap().with_extension("");
            let mut module: Module =
                relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if matches!(module.last().unwrap().as_str(), "mod" | "lib") {
                module.pop();
            }
            (module, text)
        })
        .collect()
}

/// The file that a path leads to, through re-exports.
fn resolve(path: &[String], files: &BTreeMap<Module, Imports>, hops: u32) -> Option<Module> {
    let modules: BTreeSet<Module> = files.keys().cloned().collect();
    let split = (0..=path.len()).rev().find(|end| files.contains_key(&path[..*end]))?;
    let (module, rest) = path.split_at(split);
    let Some((name, further)) = rest.split_first() else { return Some(module.to_vec()) };
    match files[module].reexported.get(name) {
        Some(target) if hops > 0 => {
            let mut target = files[module].absolute(target, &modules)?;
            target.extend_from_slice(further);
            resolve(&target, files, hops - 1)
        }
        _ => Some(module.to_vec()),
    }
}

/// Every file, with the files that it imports items from.
fn import_graph(sources: &[(Module, String)]) -> BTreeMap<Module, BTreeSet<Module>> {
    let files: BTreeMap<Module, Imports> = sources
        .iter()
        .filter(|(module, _)| !module.iter().any(|part| part == "tests" || part == "main"))
        .map(|(module, text)| {
            (module.clone(), Imports::of(module.clone(), &syn::parse_file(text).unwrap()))
        })
        .collect();
    let modules: BTreeSet<Module> = files.keys().cloned().collect();
    let targets = |imports: &Imports| {
        let named = imports.named.iter().map(|(_, path)| path);
        let paths =
            named.chain(&imports.written).filter_map(|path| imports.absolute(path, &modules));
        paths
            // Importing a module by its name imports nothing from it yet: the paths through it do.
            .filter(|path| !modules.contains(path))
            .filter_map(|path| resolve(&path, &files, 8))
            .filter(|target| *target != imports.module)
            .collect()
    };
    files.values().map(|imports| (imports.module.clone(), targets(imports))).collect()
}

/// A way from `to` back to `from`.
fn way_back(graph: &BTreeMap<Module, BTreeSet<Module>>, from: &Module, to: &Module) -> bool {
    let mut open = vec![to];
    let mut seen = BTreeSet::from([to]);
    while let Some(module) = open.pop() {
        if module == from {
            return true;
        }
        open.extend(graph.get(module).into_iter().flatten().filter(|next| seen.insert(next)));
    }
    false
}

#[test]
fn no_file_imports_a_file_that_imports_it_back() {
    let graph = import_graph(&sources());
    let circular: Vec<String> = graph
        .iter()
        .flat_map(|(from, targets)| targets.iter().map(move |to| (from, to)))
        .filter(|(from, to)| way_back(&graph, from, to))
        .map(|(from, to)| format!("{} -> {}", from.join("::"), to.join("::")))
        .collect();
    assert!(circular.is_empty(), "imports in a circle:\n{}", circular.join("\n"));
    let edges: usize = graph.values().map(BTreeSet::len).sum();
    assert!(edges > 2 * graph.len(), "only {edges} imports found in {} files", graph.len());
}

#[test]
fn circle_through_a_reexport_is_found() {
    let source = |path: &str, text: &str| {
        (path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect(), text.into())
    };
    let graph = import_graph(&[
        source("", "mod a;"),
        source("a", "pub use self::b::B; pub use self::c::C; mod b; mod c;"),
        source("a::b", "use super::C; pub struct B(C);"),
        source("a::c", "pub struct C; impl C { fn b() { crate::a::B::new() } }"),
    ]);
    let module = |path: &str| path.split("::").map(str::to_owned).collect::<Module>();
    assert_eq!(graph[&module("a::b")], BTreeSet::from([module("a::c")]));
    assert_eq!(graph[&module("a::c")], BTreeSet::from([module("a::b")]));
    assert!(way_back(&graph, &module("a::b"), &module("a::c")));
}

#[test]
fn source_files_are_short() {
    let long: Vec<String> = sources()
        .iter()
        .map(|(module, text)| (module.join("::"), text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST_FILE)
        .map(|(module, lines)| format!("{module}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "longer than {LONGEST_FILE} lines: {long:?}");
}

#[test]
fn modules_with_children_are_folders_with_a_mod_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&root, &mut files);
    let doubled: Vec<_> = files.iter().filter(|path| path.with_extension("").is_dir()).collect();
    assert!(doubled.is_empty(), "use `x/mod.rs` instead of `x.rs` next to `x/`: {doubled:?}");
}
