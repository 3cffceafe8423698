# nixpkgs.overlays = [ (import ./flagshim/examples/nixos/overlay.nix) ];
#
# qemu-flagshim is QEMU, unchanged; its emulators run through `flagshim exec`, so that PID, arguments
# and exit status are QEMU's. For the virtual machines of a NixOS test:
#
#   virtualisation.qemu.package = pkgs.qemu-flagshim;
#
# and for what the test driver itself asserts on (import flagshim):
#
#   extraPythonPackages = p: [ p.flagshim ];
#
# The trace is $FLAGSHIM_TRACE, or flagshim-qemu.db in $TMPDIR: a build has no home directory.
final: prev: {
  pythonPackagesExtensions = prev.pythonPackagesExtensions ++ [
    (python-final: python-prev: {
      # Not in nixpkgs yet; it looks for libseccomp where Nix has none.
      pyseccomp = python-final.buildPythonPackage rec {
        pname = "pyseccomp";
        version = "0.1.2";
        pyproject = true;
        src = python-final.fetchPypi {
          inherit pname version;
          hash = "sha256-DVTvrPcb2kvf0hIz9URLcwy+z1k9YC95bmQSqGgiWL0=";
        };
        build-system = [ python-final.setuptools ];
        postPatch = ''
          substituteInPlace pyseccomp.py --replace-fail \
            'ctypes.util.find_library("seccomp")' \
            '"${final.lib.getLib final.libseccomp}/lib/libseccomp.so.2"'
        '';
        pythonImportsCheck = [ "pyseccomp" ];
      };

      flagshim = python-final.buildPythonPackage {
        pname = "flagshim";
        version = "0.1.0";
        pyproject = true;
        src = ../..;
        build-system = [ python-final.setuptools ];
        dependencies = [
          python-final.click
          python-final.pyseccomp
          python-final.python-ptrace
          python-final.tabulate
        ];
        pythonImportsCheck = [ "flagshim.cli.run" ];
        meta = {
          description = "Run a program with the open flags the kernel would refuse cleared";
          license = final.lib.licenses.gpl2Only;
          platforms = [ "x86_64-linux" ];
          mainProgram = "flagshim";
        };
      };
    })
  ];

  flagshim = final.python3Packages.toPythonApplication final.python3Packages.flagshim;

  qemu-flagshim = final.symlinkJoin {
    name = "qemu-flagshim-${prev.qemu.version}";
    paths = [ prev.qemu ];
    postBuild = ''
      for program in $out/bin/qemu-system-* $out/bin/qemu-kvm; do
        [ -e "$program" ] || continue
        rm "$program"
        cat > "$program" <<EOF
      #!${final.runtimeShell}
      exec ${final.flagshim}/bin/flagshim exec \
        -o "\''${FLAGSHIM_TRACE:-\''${TMPDIR:-/tmp}/flagshim-qemu.db}" \
        -- ${prev.qemu}/bin/$(basename "$program") "\$@"
      EOF
        chmod +x "$program"
      done
    '';
    inherit (prev.qemu) meta;
  };
}
