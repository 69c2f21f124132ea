// SPDX-License-Identifier: GPL-2.0-only
/*
 * The PCI driver: a VFIO variant driver that leaves DMA to the kernel. All that
 * is about who owns what of the device stands here.
 *
 * DMA: the kernel, from probe to remove. Unlike every other VFIO driver this
 * one does not set driver_managed_dma, so the PCI core takes the group for its
 * default domain before probe (which fails when VFIO owns the group already) and
 * gives it back after remove. A user who opens the VFIO device and binds it to an
 * iommufd gets an emulated access, which claims no group; attaching it to an IOAS
 * is of no consequence to the device's DMA. The legacy group attach is refused by
 * the IOMMU core.
 *
 * BARs and bus mastering: nobody, or sessions that asked with DMAPROBE_ENABLE,
 * or the one who has the VFIO device open, whose open resets the function.
 */
#include <linux/module.h>
#include <linux/vfio_pci_core.h>

#include "compat.h"
#include "private.h"

struct dmaprobe_vfio_device {
	struct vfio_pci_core_device core;
	struct dmaprobe_device *dd;
};

/**
 * dmaprobe_mmio_enable - enable the device for a session
 * @s: the session
 *
 * Return: 0, -EBUSY when the VFIO device is open, or what pci_enable_device() said
 */
int dmaprobe_mmio_enable(struct dmaprobe_session *s)
{
	struct dmaprobe_device *dd = s->dd;
	int ret;

	guard(mutex)(&dd->lock);
	if (s->enabled)
		return 0;
	if (dd->mmio_owner == DMAPROBE_MMIO_VFIO)
		return -EBUSY;
	if (!dd->enable_users) {
		ret = pci_enable_device(dd->pdev);
		if (ret)
			return ret;
		pci_set_master(dd->pdev);
		dd->mmio_owner = DMAPROBE_MMIO_SESSION;
	}
	dd->enable_users++;
	s->enabled = true;
	return 0;
}

/**
 * dmaprobe_mmio_disable - undo dmaprobe_mmio_enable(), if it was done
 * @s: the session
 */
void dmaprobe_mmio_disable(struct dmaprobe_session *s)
{
	struct dmaprobe_device *dd = s->dd;

	guard(mutex)(&dd->lock);
	if (!s->enabled)
		return;
	s->enabled = false;
	if (--dd->enable_users)
		return;
	pci_clear_master(dd->pdev);
	pci_disable_device(dd->pdev);
	dd->mmio_owner = DMAPROBE_MMIO_NONE;
}

static struct dmaprobe_device *to_dd(struct vfio_device *vdev)
{
	return container_of(vdev, struct dmaprobe_vfio_device, core.vdev)->dd;
}

/* dmaprobe_device::lock is not held over the reset, which is slow. */
static int claim_mmio(struct dmaprobe_device *dd)
{
	guard(mutex)(&dd->lock);
	if (dd->mmio_owner != DMAPROBE_MMIO_NONE)
		return -EBUSY;
	dd->mmio_owner = DMAPROBE_MMIO_VFIO;
	return 0;
}

static void release_mmio(struct dmaprobe_device *dd)
{
	guard(mutex)(&dd->lock);
	dd->mmio_owner = DMAPROBE_MMIO_NONE;
}

static int dmaprobe_vfio_open_device(struct vfio_device *vdev)
{
	struct vfio_pci_core_device *core =
		container_of(vdev, struct vfio_pci_core_device, vdev);
	int ret;

	ret = claim_mmio(to_dd(vdev));
	if (ret)
		return ret;
	ret = vfio_pci_core_enable(core);
	if (ret) {
		release_mmio(to_dd(vdev));
		return ret;
	}
	vfio_pci_core_finish_enable(core);
	return 0;
}

static void dmaprobe_vfio_close_device(struct vfio_device *vdev)
{
	vfio_pci_core_close_device(vdev);
	release_mmio(to_dd(vdev));
}

static const struct vfio_device_ops dmaprobe_vfio_ops = {
	.name = "dmaprobe",
	.init = vfio_pci_core_init_dev,
	.release = vfio_pci_core_release_dev,
	.open_device = dmaprobe_vfio_open_device,
	.close_device = dmaprobe_vfio_close_device,
	.ioctl = vfio_pci_core_ioctl,
	DMAPROBE_VFIO_REGION_INFO_OPS
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = vfio_pci_core_read,
	.write = vfio_pci_core_write,
	.mmap = vfio_pci_core_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
	DMAPROBE_VFIO_MATCH_OPS
	.bind_iommufd = vfio_iommufd_emulated_bind,
	.unbind_iommufd = vfio_iommufd_emulated_unbind,
	.attach_ioas = vfio_iommufd_emulated_attach_ioas,
	.detach_ioas = vfio_iommufd_emulated_detach_ioas,
};

static int dmaprobe_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct dmaprobe_vfio_device *vdev;
	int ret;

	vdev = vfio_alloc_device(dmaprobe_vfio_device, core.vdev, &pdev->dev,
				 &dmaprobe_vfio_ops);
	if (IS_ERR(vdev))
		return PTR_ERR(vdev);
	vdev->dd = dmaprobe_device_create(pdev);
	if (IS_ERR(vdev->dd)) {
		ret = PTR_ERR(vdev->dd);
		goto err_vdev;
	}

	dev_set_drvdata(&pdev->dev, &vdev->core);
	ret = vfio_pci_core_register_device(&vdev->core);
	if (ret) {
		pci_err(pdev, "cannot register with VFIO: %pe\n", ERR_PTR(ret));
		goto err_dd;
	}
	ret = dmaprobe_device_add(vdev->dd);
	if (ret) {
		pci_err(pdev, "cannot add the character device: %pe\n",
			ERR_PTR(ret));
		goto err_unregister;
	}
	return 0;

err_unregister:
	vfio_pci_core_unregister_device(&vdev->core);
err_dd:
	dmaprobe_device_put(vdev->dd);
err_vdev:
	vfio_put_device(&vdev->core.vdev);
	return ret;
}

/*
 * Sessions end at once. Who has the VFIO device open is asked to close it, and
 * waited for, as with every VFIO driver; DMA faults meanwhile.
 */
static void dmaprobe_remove(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *core = dev_get_drvdata(&pdev->dev);
	struct dmaprobe_vfio_device *vdev =
		container_of(core, struct dmaprobe_vfio_device, core);

	dmaprobe_device_unplug(vdev->dd);
	vfio_pci_core_unregister_device(&vdev->core);
	dmaprobe_device_put(vdev->dd);
	vfio_put_device(&vdev->core.vdev);
}

/* Any device, but only one whose driver_override names this driver. */
static const struct pci_device_id dmaprobe_ids[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(PCI_ANY_ID, PCI_ANY_ID) },
	{}
};
MODULE_DEVICE_TABLE(pci, dmaprobe_ids);

static struct pci_driver dmaprobe_driver = {
	.name = "dmaprobe",
	.id_table = dmaprobe_ids,
	.probe = dmaprobe_probe,
	.remove = dmaprobe_remove,
	.err_handler = &vfio_pci_core_err_handlers,
};

int dmaprobe_vfio_register(void)
{
	return pci_register_driver(&dmaprobe_driver);
}

void dmaprobe_vfio_unregister(void)
{
	pci_unregister_driver(&dmaprobe_driver);
}
